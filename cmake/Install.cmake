# cmake --install: programs, configurations, scripts, man page, completion. cpack: the same as a Debian package.
include(GNUInstallDirs)
set(share ${CMAKE_INSTALL_DATADIR}/moesim)
install(TARGETS moesim moesim-f64 RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY configs/ DESTINATION ${share}/configs)

# libmoesim with its header, for pkg-config and for Python (`import moesim` where dist-packages of this prefix is in the path).
install(TARGETS libmoesim libmoesim-f64 LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} PUBLIC_HEADER DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES ${PROJECT_BINARY_DIR}/library/moesim.pc ${PROJECT_BINARY_DIR}/library/moesim-f64.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
install(DIRECTORY python/moesim DESTINATION lib/python3/dist-packages PATTERN __pycache__ EXCLUDE)
install(DIRECTORY python/examples DESTINATION ${CMAKE_INSTALL_DOCDIR} PATTERN __pycache__ EXCLUDE)

# Scripts that use moesim (those that build it stay in the repository), each with a command moesim-NAME that starts it.
install(FILES scripts/env scripts/openmpi.conf scripts/keys_table.py scripts/launch.py scripts/names.py scripts/command_line.py DESTINATION ${share}/scripts)
# The lists of names that scripts/names.py reads.
install(FILES src/balance/losses.def src/measure/names.def src/output/files.def DESTINATION ${share}/scripts)
set(tools run report sweep lesson import-trace record-trace export-placement import-placement export-traffic advise simulate)
foreach(script IN LISTS tools)
  install(PROGRAMS scripts/${script} DESTINATION ${share}/scripts)
  configure_file(cmake/command.in commands/moesim-${script} @ONLY)
  install(PROGRAMS ${PROJECT_BINARY_DIR}/commands/moesim-${script} DESTINATION ${CMAKE_INSTALL_BINDIR})
endforeach()
foreach(library IN ITEMS report_lib run_lib sweep_lib lesson_lib trace_lib export_lib advise_lib simulate_lib)
  if(EXISTS ${PROJECT_SOURCE_DIR}/scripts/${library})
    install(DIRECTORY scripts/${library} DESTINATION ${share}/scripts PATTERN __pycache__ EXCLUDE)
  endif()
endforeach()
install(FILES README.md CHANGELOG.md DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR} RENAME copyright)
install(DIRECTORY docs DESTINATION ${CMAKE_INSTALL_DOCDIR} OPTIONAL)

# Man page and completion come out of the built program. An instrumented one is for tests, and one for another machine cannot be asked.
find_program(PYTHON_PROGRAM python3)
if(PYTHON_PROGRAM AND NOT CMAKE_CROSSCOMPILING AND NOT MOESIM_SANITIZE AND NOT MOESIM_FUZZ AND NOT MOESIM_COVERAGE)
  set(pages ${PROJECT_BINARY_DIR}/docs/moesim.1 ${PROJECT_BINARY_DIR}/docs/moesim.bash)
  set(sources ${PROJECT_SOURCE_DIR}/scripts/make-docs ${PROJECT_SOURCE_DIR}/scripts/keys_table.py)
  foreach(tool IN LISTS tools)
    list(APPEND pages ${PROJECT_BINARY_DIR}/docs/moesim-${tool}.1)
    list(APPEND sources ${PROJECT_SOURCE_DIR}/scripts/${tool})
  endforeach()
  add_custom_command(OUTPUT ${pages} COMMENT "Man page and shell completion" VERBATIM
    COMMAND ${PYTHON_PROGRAM} ${PROJECT_SOURCE_DIR}/scripts/make-docs $<TARGET_FILE:moesim> ${PROJECT_BINARY_DIR}/docs ${tools}
    DEPENDS moesim ${sources})
  add_custom_target(docs ALL DEPENDS ${pages})
  file(WRITE ${PROJECT_BINARY_DIR}/docs/moesim-f64.1 ".so man1/moesim.1\n")
  set(completions ${CMAKE_INSTALL_DATADIR}/bash-completion/completions)
  install(FILES ${PROJECT_BINARY_DIR}/docs/moesim.bash DESTINATION ${completions} RENAME moesim)
  # bash looks for a file of the command's own name
  file(WRITE ${PROJECT_BINARY_DIR}/docs/other.bash ". \"\${BASH_SOURCE[0]%/*}/moesim\"\n")
  list(TRANSFORM tools PREPEND moesim- OUTPUT_VARIABLE commands)
  foreach(command IN ITEMS moesim-f64 LISTS commands)
    install(FILES ${PROJECT_BINARY_DIR}/docs/other.bash DESTINATION ${completions} RENAME ${command})
    install(FILES ${PROJECT_BINARY_DIR}/docs/${command}.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
  endforeach()
  install(FILES ${PROJECT_BINARY_DIR}/docs/moesim.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
endif()

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_DIRECTORY ${PROJECT_BINARY_DIR}/packages) # wherever cpack is called
set(CPACK_PACKAGE_CONTACT "The moesim authors <moesim@localhost>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "simulator of expert-parallel Mixture-of-Experts over MPI")
set(CPACK_STRIP_FILES ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_GENERATE_SHLIBS ON)   # and ldconfig runs, which makes libmoesim known
set(CPACK_DEBIAN_PACKAGE_DEPENDS openmpi-bin)
set(CPACK_DEBIAN_PACKAGE_RECOMMENDS "python3, python3-numpy, python3-jinja2")
set(CPACK_DEBIAN_PACKAGE_SUGGESTS "python3-pandas, bash-completion")
include(CPack)
