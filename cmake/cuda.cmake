# CUDA kernels, when an nvcc is to be had: the system's, or that of the nvidia-cuda-nvcc wheel.
#
#   pip install "cuda-toolkit[nvcc,cudart,cccl,crt,nvvm]"
#
# The runtime is linked statically, so the module loads on a machine without a driver.
set(glimt_cuda_archs "80;86;89;90a;100;120")
if(glimt_cuda_wanted STREQUAL "OFF")
  message(STATUS "glimt: CUDA kernels off (GLIMT_CUDA=OFF)")
  return()
endif()

if(NOT CMAKE_CUDA_COMPILER) # one that was not found before may be there now
  unset(CMAKE_CUDA_COMPILER CACHE)
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  execute_process(COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/wheel_nvcc.py
                  OUTPUT_VARIABLE pip_nvcc OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  if(pip_nvcc)
    cmake_path(GET pip_nvcc PARENT_PATH pip_cuda)
    cmake_path(GET pip_cuda PARENT_PATH pip_cuda)
    set(ENV{CUDACXX} "${pip_nvcc}")
    set(ENV{LIBRARY_PATH} "${pip_cuda}/lib:$ENV{LIBRARY_PATH}") # nvcc links -L lib64, the wheel has lib/
    file(GLOB pip_cudart "${pip_cuda}/lib/libcudart.so.*")
    if(pip_cudart)
      list(GET pip_cudart 0 pip_cudart)
      set(CUDA_CUDART "${pip_cudart}" CACHE FILEPATH "") # the wheel has no libcudart.so symlink
    endif()
    unset(CMAKE_CUDA_COMPILER CACHE)
    unset(CMAKE_CUDA_COMPILER)
    check_language(CUDA)
  endif()
endif()

if(CMAKE_CUDA_COMPILER)
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES OFF) # set per target below
  endif()
  enable_language(CUDA)
  find_package(CUDAToolkit QUIET)
endif()

if(NOT TARGET CUDA::cudart_static)
  if(glimt_cuda_wanted STREQUAL "ON")
    message(FATAL_ERROR "GLIMT_CUDA=ON, but no usable CUDA toolkit (nvcc and the static runtime) was found. Put nvcc on "
                        "PATH, or: pip install \"cuda-toolkit[nvcc,cudart,cccl,crt,nvvm]\"")
  endif()
  message(STATUS "glimt: CUDA kernels off (no nvcc found)")
  return()
endif()

# Chips this toolkit cannot name are left out, and the rest get the newest virtual one for those to come.
set(glimt_real "")
foreach(arch ${glimt_cuda_archs})
  string(REGEX REPLACE "[^0-9]" "" number ${arch})
  if(number GREATER_EQUAL 100 AND CUDAToolkit_VERSION VERSION_LESS 12.8)
    message(STATUS "glimt: sm_${arch} left out, CUDA ${CUDAToolkit_VERSION} does not know it")
  else()
    list(APPEND glimt_real "${arch}-real")
    set(glimt_newest ${number})
  endif()
endforeach()
string(REPLACE "-real" "" glimt_cuda_archs "${glimt_real}")
string(REPLACE ";" " " glimt_cuda_archs "${glimt_cuda_archs}")

add_library(glimt_cuda STATIC kernels/glimt_kernels/frames_to_uint8/frames_to_uint8.cu)
target_include_directories(glimt_cuda PUBLIC csrc PRIVATE kernels/glimt_kernels)
set_target_properties(glimt_cuda PROPERTIES CUDA_STANDARD 17 CUDA_RUNTIME_LIBRARY Static
                                            CUDA_ARCHITECTURES "${glimt_real};${glimt_newest}-virtual")
target_link_libraries(glimt_cuda PRIVATE CUDA::cudart_static)
message(STATUS "glimt: CUDA kernels for sm ${glimt_cuda_archs} (nvcc ${CUDAToolkit_VERSION})")

# The convolutions are written with the headers of CUTLASS, which the wheel nvidia-cutlass carries:
#
#   pip install --no-deps nvidia-cutlass        (what it depends on is for its Python)
execute_process(COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/wheel_cutlass.py
                OUTPUT_VARIABLE glimt_cutlass OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
if(NOT glimt_cutlass)
  message(STATUS "glimt: CUDA convolutions left out, the headers of CUTLASS are not there; to have them: "
                 "pip install --no-deps nvidia-cutlass")
  return()
endif()

# A target for each family, for an instruction set belongs to all files of a target. Code of sm_80 runs on 86 and 89 as
# it is; PTX of sm_80 is for those to come.
function(glimt_add_convolutions family archs)
  add_library(glimt_conv_${family} OBJECT)
  foreach(channels 96 192)
    target_sources(glimt_conv_${family} PRIVATE kernels/glimt_kernels/causal_conv3d/${family}_${channels}.cu)
  endforeach()
  target_include_directories(glimt_conv_${family} PRIVATE csrc kernels/glimt_kernels)
  target_include_directories(glimt_conv_${family} SYSTEM PRIVATE ${glimt_cutlass})
  set_target_properties(glimt_conv_${family} PROPERTIES CUDA_STANDARD 17 CUDA_RUNTIME_LIBRARY Static
                                                        CUDA_ARCHITECTURES "${archs}")
  target_sources(glimt_cuda PRIVATE $<TARGET_OBJECTS:glimt_conv_${family}>)
endfunction()

set(glimt_conv_ampere 80-real 80-virtual)
if(CUDAToolkit_VERSION VERSION_GREATER_EQUAL 12.8)
  list(APPEND glimt_conv_ampere 120-real)
endif()
glimt_add_convolutions(ampere "${glimt_conv_ampere}")
glimt_add_convolutions(hopper 90a-real)
target_sources(glimt_cuda PRIVATE kernels/glimt_kernels/causal_conv3d/launch.cpp)
set(glimt_conv_archs "${glimt_cuda_archs}")
message(STATUS "glimt: CUDA convolutions with CUTLASS of ${glimt_cutlass}")
