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
foreach(script IN ITEMS report sweep lesson import-trace record-trace export-placement import-placement export-traffic advise simulate)
  if(EXISTS ${PROJECT_SOURCE_DIR}/scripts/${script})
    install(PROGRAMS scripts/${script} DESTINATION ${share}/scripts)
    configure_file(cmake/command.in commands/moesim-${script} @ONLY)
    install(PROGRAMS ${PROJECT_BINARY_DIR}/commands/moesim-${script} DESTINATION ${CMAKE_INSTALL_BINDIR})
  endif()
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
  add_custom_command(OUTPUT ${pages} COMMENT "Man page and shell completion" VERBATIM
    COMMAND ${PYTHON_PROGRAM} ${PROJECT_SOURCE_DIR}/scripts/make-docs $<TARGET_FILE:moesim> ${PROJECT_BINARY_DIR}/docs
    DEPENDS moesim ${PROJECT_SOURCE_DIR}/scripts/make-docs ${PROJECT_SOURCE_DIR}/scripts/keys_table.py)
  add_custom_target(docs ALL DEPENDS ${pages})
  file(WRITE ${PROJECT_BINARY_DIR}/docs/moesim-f64.1 ".so man1/moesim.1\n")
  install(FILES ${PROJECT_BINARY_DIR}/docs/moesim.1 ${PROJECT_BINARY_DIR}/docs/moesim-f64.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
  install(FILES ${PROJECT_BINARY_DIR}/docs/moesim.bash DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME moesim)
endif()

set(CPACK_GENERATOR DEB)
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
