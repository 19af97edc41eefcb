# libmoesim and libmoesim-f64: what decides and computes, without MPI, as shared libraries with the header src/library/moesim.h. Every function
# is a section of its own and only those of the header are seen, so that the linker leaves out what these do not need: MPI, BLAS, inih.
# They are never instrumented, since Python loads them.
set(MOESIM_LIBRARY_SOURCES "")
# scripts/playground compiles the same list, without the balancers.
foreach(source IN ITEMS base/alloc base/bf16 base/block base/exact base/rng base/scratch base/sparse base/status base/sums config/* placement/*
    data/batch data/keyed data/synthetic router/* balance/* capacity/* exchange/payload exchange/plan exchange/row_format experts/activation experts/ffn
    measure/imbalance measure/metrics predict/cost predict/cost_attention predict/prediction predict/bottleneck attention/shape library/*)
  file(GLOB files CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/${source}.c)
  list(APPEND MOESIM_LIBRARY_SOURCES ${files})
endforeach()

include(GNUInstallDirs)
file(RELATIVE_PATH MOESIM_PC_UP /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)   # from the .pc file to the prefix, so that the prefix may move
get_target_property(options moesim_flags INTERFACE_COMPILE_OPTIONS)
foreach(precision IN ITEMS "" "-f64")
  set(target libmoesim${precision})
  add_library(${target} SHARED ${MOESIM_LIBRARY_SOURCES})
  set_target_properties(${target} PROPERTIES OUTPUT_NAME moesim${precision} VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}
    C_VISIBILITY_PRESET hidden LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/library PUBLIC_HEADER ${PROJECT_SOURCE_DIR}/src/library/moesim.h)
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/src)
  target_include_directories(${target} SYSTEM PRIVATE ${RANDOM123_INCLUDE_DIR} ${GLPK_INCLUDE_DIR} ${INIH_INCLUDE_DIRS})
  target_compile_definitions(${target} PRIVATE _GNU_SOURCE MOE_WITHOUT_MPI MOESIM_VERSION="${PROJECT_VERSION}")
  target_compile_options(${target} PRIVATE ${options} -ffunction-sections -fdata-sections)
  target_link_options(${target} PRIVATE -Wl,--gc-sections,-z,defs,--version-script=${PROJECT_SOURCE_DIR}/cmake/library.map)
  target_link_libraries(${target} PRIVATE OpenMP::OpenMP_C ${GLPK_LIBRARY} m)
  if(precision STREQUAL "-f64")
    target_compile_definitions(${target} PRIVATE MOE_REAL_DOUBLE)
  endif()
  configure_file(cmake/moesim.pc.in library/moesim${precision}.pc @ONLY)
endforeach()
