# The CPU kernels: one source, compiled once per instruction set, chosen at run time (csrc/cpu/dispatch.cpp).
include(CheckCXXCompilerFlag)

add_library(glimt_cpu STATIC csrc/cpu/dispatch.cpp csrc/cpu/parallel.cpp)
target_include_directories(glimt_cpu PUBLIC csrc PRIVATE kernels/glimt_kernels)
target_compile_options(glimt_cpu PRIVATE -Wall -Wextra)

# PyTorch has its own libgomp, loaded before this module: ours resolves to the same one, so there is one thread pool.
find_package(OpenMP QUIET COMPONENTS CXX)
find_package(Threads REQUIRED)
if(OpenMP_CXX_FOUND)
  set(glimt_threads OpenMP::OpenMP_CXX)
else()
  set(glimt_threads Threads::Threads)
endif()
target_link_libraries(glimt_cpu PUBLIC ${glimt_threads})

function(glimt_add_isa name)
  add_library(glimt_cpu_${name} OBJECT csrc/cpu/kernels.cpp)
  target_include_directories(glimt_cpu_${name} PRIVATE csrc kernels/glimt_kernels)
  # Floats as written: no fused operation but where the source says fma().
  # -Wno-psabi: vectors never cross the boundary between translation units. -Wno-maybe-uninitialized: GCC 12's own
  # header of AVX-512 is full of it.
  target_compile_options(glimt_cpu_${name} PRIVATE -O3 -Wall -Wextra -Wno-psabi -ffp-contract=off -fno-math-errno
                                                   -fno-trapping-math
                                                   $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized> ${ARGN})
  target_compile_definitions(glimt_cpu_${name} PRIVATE GLIMT_ISA=${name})
  target_sources(glimt_cpu PRIVATE $<TARGET_OBJECTS:glimt_cpu_${name}>)
endfunction()

glimt_add_isa(baseline)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  foreach(level v3 v4)
    check_cxx_compiler_flag(-march=x86-64-${level} GLIMT_HAS_${level})
    if(GLIMT_HAS_${level})
      glimt_add_isa(${level} -march=x86-64-${level})
      string(TOUPPER ${level} upper)
      target_compile_definitions(glimt_cpu PRIVATE GLIMT_HAVE_${upper}=1)
    endif()
  endforeach()
endif()
