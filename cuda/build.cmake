# The CUDA kernels, the library of the op for CPU and CUDA, and the kernels' test. Included where QKVGEMM_CUDA is on.

# Machine code comes from the flags below; CMake wants an architecture of its own, though, to try the compiler with.
set(CMAKE_CUDA_ARCHITECTURES 75)
enable_language(CUDA)
set(CMAKE_CUDA_ARCHITECTURES OFF)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
# The C++ standard is that of the host's code, which older releases of CMake do not know nvcc to have.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
endif()
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.5)
  message(FATAL_ERROR "nvcc is ${CMAKE_CUDA_COMPILER_VERSION}, and 12.5 is needed (cudaGetDriverEntryPointByVersion)")
endif()
find_package(CUDAToolkit REQUIRED)  # cudart_static; nothing else is linked
set(ARCHITECTURES ${QKVGEMM_CUDA_ARCHITECTURES})
if(ARCHITECTURES STREQUAL "all")
  set(ARCHITECTURES 75 80 86 89 90a)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
    list(APPEND ARCHITECTURES 100 120)
  endif()
endif()
foreach(architecture ${ARCHITECTURES})
  if(NOT architecture MATCHES "^[0-9]+[af]?$")
    message(FATAL_ERROR "QKVGEMM_CUDA_ARCHITECTURES is '${QKVGEMM_CUDA_ARCHITECTURES}'; it takes 'all' or compute "
      "capabilities without the point, from the oldest to the newest, with semicolons between them: '80;90a'")
  endif()
endforeach()

# nvcc's flags for machine code of each architecture.
function(machine_code result)
  set(flags)
  foreach(architecture ${ARGN})
    list(APPEND flags -gencode=arch=compute_${architecture},code=sm_${architecture})
  endforeach()
  set(${result} ${flags} PARENT_SCOPE)
endfunction()

machine_code(ALL_CODE ${ARCHITECTURES})
list(GET ARCHITECTURES -1 NEWEST)
# PTX is for devices that come after. PTX of an architecture with a suffix serves that one alone.
if(NEWEST MATCHES "^[0-9]+$")
  list(APPEND ALL_CODE -gencode=arch=compute_${NEWEST},code=compute_${NEWEST})
endif()

# Where PTX may run on a device that is newer than its architecture: launches overlap only if the code knows how to wait.
string(REGEX MATCH "^[0-9]+" NEWEST_NUMBER ${NEWEST})
if(NEWEST_NUMBER LESS 90)
  add_compile_definitions(QKVGEMM_NO_DEPENDENT_LAUNCH)
endif()

# A file named *_sm90.cu uses instructions of that architecture alone; everything else is compiled for all of them.
function(set_machine_code)
  list(FILTER ARGN INCLUDE REGEX "\\.cu$")
  foreach(source ${ARGN})
    if(source MATCHES "_sm([0-9]+)\\.cu$")
      machine_code(code ${CMAKE_MATCH_1}a)
    else()
      set(code ${ALL_CODE})
    endif()
    set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${code}")
  endforeach()
endfunction()

add_library(qkvgemm_cuda_options INTERFACE)
# Without -Wshadow: what nvcc hands to the host compiler has shadowed names. Layouts are constexpr functions, which host
# and device both call.
target_compile_options(qkvgemm_cuda_options INTERFACE "$<$<COMPILE_LANGUAGE:CUDA>:\
-Werror=all-warnings;--expt-relaxed-constexpr;-Xcompiler=-Wall,-Wextra,-Wno-missing-field-initializers,-Werror;--threads=2>")
target_link_libraries(qkvgemm_cuda_options INTERFACE qkvgemm_options CUDA::cudart_static)

file(GLOB CUDA_SOURCES CONFIGURE_DEPENDS cuda/*.cu cuda/*.cc)
add_library(qkvgemm_cuda_kernels OBJECT ${CUDA_SOURCES})
target_link_libraries(qkvgemm_cuda_kernels PRIVATE qkvgemm_cuda_options)
set_machine_code(${CUDA_SOURCES})

add_op_library(qkvgemm-cuda ops/cuda_kernel.cc $<TARGET_OBJECTS:qkvgemm_cuda_kernels>)
target_link_libraries(qkvgemm-cuda PRIVATE CUDA::cudart_static)
target_compile_definitions(qkvgemm-cuda PRIVATE QKVGEMM_CUDA)

file(GLOB CUDA_TEST_SOURCES CONFIGURE_DEPENDS test/cuda/*.cu test/cuda/*.cc)
if(CUDA_TEST_SOURCES)
  add_executable(qkvgemm_cuda_test ${CUDA_TEST_SOURCES} $<TARGET_OBJECTS:qkvgemm_cuda_kernels>)
  target_link_libraries(qkvgemm_cuda_test PRIVATE qkvgemm_cuda_options)
  set_machine_code(${CUDA_TEST_SOURCES})
  set_target_properties(qkvgemm_cuda_test PROPERTIES LINKER_LANGUAGE CXX)
endif()

# The kernels behind a C interface, for benchmarks from other languages.
if(EXISTS ${CMAKE_SOURCE_DIR}/scripts/bench_cuda_abi.cu)
  add_library(qkvgemm_cuda_abi SHARED scripts/bench_cuda_abi.cu $<TARGET_OBJECTS:qkvgemm_cuda_kernels>)
  target_link_libraries(qkvgemm_cuda_abi PRIVATE qkvgemm_cuda_options)
  set_machine_code(scripts/bench_cuda_abi.cu)
  set_target_properties(qkvgemm_cuda_abi PROPERTIES LINKER_LANGUAGE CXX)
endif()
