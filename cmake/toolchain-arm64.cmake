# 64-bit ARM Linux from an x86-64 Debian, with Debian's own cross compiler and its arm64 libraries beside the native ones
# (deploy/install-packages --arm64). Tests run under qemu's user emulation, which finds arm64's loader and libraries where
# multiarch puts them, so no root directory of its own is given.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)

# Only arm64's descriptions of libraries. Programs (protoc-c, python3) stay those of the building machine.
set(ENV{PKG_CONFIG_LIBDIR} /usr/lib/aarch64-linux-gnu/pkgconfig)
set(ENV{PKG_CONFIG_PATH} "")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)

find_program(CW_QEMU_AARCH64 NAMES qemu-aarch64-static qemu-aarch64)
if(CW_QEMU_AARCH64)
    set(CMAKE_CROSSCOMPILING_EMULATOR ${CW_QEMU_AARCH64})
endif()
