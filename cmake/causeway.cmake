# How every part of the project is compiled, and the three verbs the rooms use:
#   cw_room(NAME SOURCES ... DEPS ... PRIVATE_DEPS ...)  a static library with include/ public and src/ private
#   cw_program(NAME SOURCES ... DEPS ...)                an executable
#   cw_test(NAME SOURCES ... DEPS ... LABELS ...)        a cmocka test registered with ctest
include(GNUInstallDirs)
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)

set(CMAKE_C_STANDARD 11)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
    set(CMAKE_BUILD_TYPE RelWithDebInfo)
endif()

set(CW_SANITIZE "" CACHE STRING "Sanitizers, as -fsanitize takes them: address,undefined or thread or fuzzer,address")
option(CW_FUZZ "Build the libFuzzer targets (needs clang)" OFF)
option(CW_TESTS "Build the tests" ON)

# One arithmetic (docs/NUMERICS.md): no contraction, no fast-math, no -march. Kernels add the flags of their own ISA per file.
add_library(cw_flags INTERFACE)
target_compile_definitions(cw_flags INTERFACE _GNU_SOURCE CW_VERSION="${PROJECT_VERSION}")
target_compile_options(cw_flags INTERFACE
    -ffp-contract=off -fno-math-errno -fno-strict-aliasing -fvisibility=hidden
    -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla -Wundef -Wwrite-strings -Werror
    # snprintf that cuts is how names and sentences are bounded here, and gcc's guesses differ with version and sanitizer.
    $<$<C_COMPILER_ID:GNU>:-Wno-format-truncation>
    $<$<CONFIG:Debug>:-O1 -DCW_DEBUG=1> -fstack-protector-strong)
if(NOT CW_SANITIZE)
    target_compile_definitions(cw_flags INTERFACE $<$<NOT:$<CONFIG:Debug>>:_FORTIFY_SOURCE=2>)
endif()
if(CW_SANITIZE)
    # gcc documents that sanitizers make -Wmaybe-uninitialized warn where nothing is wrong.
    target_compile_options(cw_flags INTERFACE -fsanitize=${CW_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all
        $<$<C_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
    target_link_options(cw_flags INTERFACE -fsanitize=${CW_SANITIZE})
endif()
target_link_libraries(cw_flags INTERFACE Threads::Threads m)

function(cw_room name)
    cmake_parse_arguments(A "" "" "SOURCES;DEPS;PRIVATE_DEPS" ${ARGN})
    add_library(${name} STATIC ${A_SOURCES})
    target_include_directories(${name} PUBLIC ${CMAKE_CURRENT_SOURCE_DIR}/include PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/src)
    target_link_libraries(${name} PUBLIC cw_flags ${A_DEPS} PRIVATE ${A_PRIVATE_DEPS})
endfunction()

function(cw_program name)
    cmake_parse_arguments(A "" "" "SOURCES;DEPS" ${ARGN})
    add_executable(${name} ${A_SOURCES})
    target_link_libraries(${name} PRIVATE cw_flags ${A_DEPS})
    set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
    install(TARGETS ${name} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endfunction()

if(CW_TESTS)
    enable_testing()
    pkg_check_modules(CMOCKA REQUIRED IMPORTED_TARGET cmocka)
endif()

# A test binary runs from the repository's root, so golden files have stable relative names.
function(cw_test name)
    if(NOT CW_TESTS)
        return()
    endif()
    cmake_parse_arguments(A "" "TIMEOUT" "SOURCES;DEPS;LABELS" ${ARGN})
    add_executable(${name} ${A_SOURCES})
    target_link_libraries(${name} PRIVATE cw_flags ${A_DEPS} PkgConfig::CMOCKA)
    set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
    add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
    if(NOT A_TIMEOUT)
        set(A_TIMEOUT 120)
    endif()
    if(CMAKE_CROSSCOMPILING) # an emulator runs it
        math(EXPR A_TIMEOUT "10 * ${A_TIMEOUT}")
    endif()
    # Exit code 77: the test says that what it needs is not on this machine, and ctest shows it as skipped.
    set_tests_properties(${name} PROPERTIES TIMEOUT ${A_TIMEOUT} LABELS "${A_LABELS}" SKIP_RETURN_CODE 77)
    if(CMAKE_CROSSCOMPILING)
        set_tests_properties(${name} PROPERTIES ENVIRONMENT "CW_EMULATED=1")
    endif()
    if(CW_SANITIZE MATCHES "thread")
        set_tests_properties(${name} PROPERTIES ENVIRONMENT "TSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/tests/tsan.supp")
    endif()
endfunction()

# A libFuzzer target, built where CW_FUZZ is on; its seeds and a short smoke run are given by the folder that adds it.
function(cw_fuzz name)
    if(NOT CW_FUZZ)
        return()
    endif()
    cmake_parse_arguments(A "" "" "SOURCES;DEPS" ${ARGN})
    add_executable(${name} ${A_SOURCES})
    target_link_libraries(${name} PRIVATE cw_flags ${A_DEPS})
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/fuzz)
endfunction()
