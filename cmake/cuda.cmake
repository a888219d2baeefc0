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
