# Registers tests. Options stand in one of the first lines of a test's source:
#
#   ctest: [f64] [gemm] [serial] [np=1,2,8] [timeout=SECONDS] [labels=long,slow]
#
#   f64      also built with real = double; the second test has the suffix -f64
#   gemm     run.gemm = auto is also tried with each library alone (MOESIM_GEMM), in single precision, at two ranks where
#            there are ranks
#   serial   never beside another test (measurements)
#   np       numbers of ranks of an mpi_*.c program (default 1,2,3,4,8)
#   timeout  seconds for one run (default 60), multiplied in instrumented builds
#   labels   beside those of its kind and its folder; scripts/test leaves `long` out unless asked for it

# Environment of a run: scripts/env without the shell. Ranks yield and share cores.
set(MOESIM_TEST_ENVIRONMENT
  OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  "OMPI_MCA_mca_base_param_files=$ENV{HOME}/.openmpi/mca-params.conf,${PROJECT_SOURCE_DIR}/scripts/openmpi.conf,/etc/openmpi/openmpi-mca-params.conf"
  OMP_WAIT_POLICY=passive NO_COLOR=1 PYTHONDONTWRITEBYTECODE=1 "PYTHONPATH=${PROJECT_SOURCE_DIR}/tests/support"
  "MOESIM_SOURCE_DIR=${PROJECT_SOURCE_DIR}" "MOESIM_BUILD_DIR=${PROJECT_BINARY_DIR}" "MOESIM_GOLDEN_DIR=${PROJECT_SOURCE_DIR}/tests/golden")
if(MOESIM_SANITIZE STREQUAL "thread")
  # libomp and Open MPI are not instrumented; archer tells ThreadSanitizer what OpenMP orders
  list(APPEND MOESIM_TEST_ENVIRONMENT TSAN_OPTIONS=ignore_noninstrumented_modules=1:halt_on_error=1)
endif()
# Programs written for a test call MPI_Init themselves: on one host this halves their start. moesim arranges it alone.
set(MOESIM_ONE_HOST OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,vader)

# The name of a test's folder, which is its second label.
function(moesim_test_folder source folder)
  get_filename_component(path ${source} DIRECTORY)
  get_filename_component(name ${path} NAME)
  set(${folder} ${name} PARENT_SCOPE)
endfunction()

# Reads the option line of a source into <prefix>_{f64,gemm,serial,np,timeout,labels}.
function(moesim_test_options source prefix)
  file(STRINGS ${source} head LIMIT_COUNT 12)
  set(line "")
  foreach(candidate IN LISTS head)
    if(candidate MATCHES "ctest:([^*\"]*)" AND NOT line)
      string(REPLACE ";" "," line "${CMAKE_MATCH_1}")
    endif()
  endforeach()
  set(np 1 2 3 4 8)
  set(timeout 60)
  set(labels "")
  set(f64 OFF)
  set(gemm OFF)
  set(serial OFF)
  if(line)
    separate_arguments(words UNIX_COMMAND "${line}")
    foreach(word IN LISTS words)
      if(word MATCHES "^(f64|gemm|serial)$")
        set(${word} ON)
      elseif(word MATCHES "^(np|timeout|labels)=(.+)$")
        string(REPLACE "," ";" ${CMAKE_MATCH_1} "${CMAKE_MATCH_2}")
      else()
        message(FATAL_ERROR "${source}: '${word}' is no option of a ctest: line")
      endif()
    endforeach()
  endif()
  math(EXPR timeout "${timeout} * ${MOESIM_TIME_FACTOR}")
  foreach(option IN ITEMS np timeout labels f64 gemm serial)
    set(${prefix}_${option} "${${option}}" PARENT_SCOPE)
  endforeach()
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${source})
endfunction()

# moesim_add_run(NAME n COMMAND c... [NP p] [TIMEOUT s] [LABELS l...] [ENVIRONMENT e...] [SERIAL s]): one ctest in a folder of its own;
# with NP under mpirun. timeout(1) is inside ctest's own, so that mpirun is asked to end its ranks before it is killed.
function(moesim_add_run)
  cmake_parse_arguments(run "" "NAME;NP;TIMEOUT;SERIAL" "COMMAND;LABELS;ENVIRONMENT" ${ARGN})
  if(NOT run_TIMEOUT)
    math(EXPR run_TIMEOUT "60 * ${MOESIM_TIME_FACTOR}")
  endif()
  math(EXPR outer "${run_TIMEOUT} + 15")
  set(processors 1)
  set(launch "")
  if(run_NP)
    set(launch ${TIMEOUT_PROGRAM} -k 5 ${run_TIMEOUT} ${MPIEXEC_EXECUTABLE} --oversubscribe -np ${run_NP})
    set(processors ${run_NP})
  endif()
  set(folder ${CMAKE_CURRENT_BINARY_DIR}/work/${run_NAME})
  file(MAKE_DIRECTORY ${folder})
  add_test(NAME ${run_NAME} COMMAND ${launch} ${run_COMMAND} WORKING_DIRECTORY ${folder})
  set_tests_properties(${run_NAME} PROPERTIES TIMEOUT ${outer} PROCESSORS ${processors} LABELS "${run_LABELS}"
    ENVIRONMENT "${MOESIM_TEST_ENVIRONMENT};${run_ENVIRONMENT}")
  if(run_SERIAL)
    set_tests_properties(${run_NAME} PROPERTIES RUN_SERIAL ON)
  endif()
endfunction()

# Builds one program of a test: <target> from <source>, with the library and the naive reference of that precision.
function(moesim_test_program target source precision)
  add_executable(${target} ${source} ${ARGN})
  target_link_libraries(${target} PRIVATE moesim-lib${precision})
  if(TARGET moesim_reference${precision})
    target_link_libraries(${target} PRIVATE moesim_reference${precision})
  endif()
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/tests/support)
  target_compile_definitions(${target} PRIVATE MOESIM_GOLDEN_DIR="${PROJECT_SOURCE_DIR}/tests/golden")
endfunction()
