# Binaries for older releases of glibc than the one here: link_portably(TARGET).
#
# Linking takes the newest version of each function that the C library has, so that a binary would not load where that
# version is missing. Most of these versions are old functions in a new place: since 2.34 those of libpthread and libdl are
# in libc. Stand-ins for these two libraries, which exist at link time only, offer the functions at the version that they
# have had since the first release for the processor; the loader finds them in old and new releases alike. What older
# releases lack is in ops/portable/glibc.cc.
#
# libgcc, with the code that unwinds stacks, is not linked in: that of a new compiler asks for _dl_find_object of 2.35. ONNX
# Runtime needs libgcc_s.so.1 as well, so that it is there.

include(CheckCXXSymbolExists)
check_cxx_symbol_exists(__GLIBC__ features.h QKVGEMM_GLIBC)
set(FIRST_GLIBC_x86_64 GLIBC_2.2.5)
set(FIRST_GLIBC_aarch64 GLIBC_2.17)
set(FIRST_GLIBC ${FIRST_GLIBC_${CMAKE_SYSTEM_PROCESSOR}})

set(LIBPTHREAD_FUNCTIONS
  pthread_create pthread_join pthread_detach pthread_once __pthread_key_create pthread_key_create pthread_key_delete
  pthread_getspecific pthread_setspecific pthread_mutex_trylock pthread_rwlock_init pthread_rwlock_destroy
  pthread_rwlock_rdlock pthread_rwlock_tryrdlock pthread_rwlock_wrlock pthread_rwlock_trywrlock pthread_rwlock_unlock
  pthread_kill pthread_sigmask pthread_setaffinity_np pthread_getaffinity_np sem_init sem_destroy sem_post sem_wait
  sem_trywait sem_timedwait)
set(LIBDL_FUNCTIONS dlopen dlclose dlsym dlvsym dlerror dladdr dladdr1 dlinfo)

# A shared library TARGET that loads as SONAME and has these functions, each at the version FIRST_GLIBC, all of them empty.
function(add_stand_in target soname)
  set(folder ${CMAKE_BINARY_DIR}/portable)
  list(JOIN ARGN "() {}\nvoid " definitions)
  list(JOIN ARGN "; " names)
  file(CONFIGURE OUTPUT ${folder}/${soname}.cc CONTENT "extern \"C\" {\nvoid ${definitions}() {}\n}\n")
  file(CONFIGURE OUTPUT ${folder}/${soname}.map CONTENT "${FIRST_GLIBC} { global: ${names}; local: *; };\n")
  add_library(${target} SHARED ${folder}/${soname}.cc)
  target_compile_options(${target} PRIVATE -fvisibility=default)
  target_link_options(${target} PRIVATE
    -nostdlib -Wl,-soname,${soname} -Wl,--version-script=${folder}/${soname}.map)
  set_target_properties(${target} PROPERTIES
    NO_SONAME ON LIBRARY_OUTPUT_DIRECTORY ${folder} LINK_DEPENDS ${folder}/${soname}.map)
endfunction()

if(QKVGEMM_GLIBC AND FIRST_GLIBC)
  add_stand_in(qkvgemm_stand_in_pthread libpthread.so.0 ${LIBPTHREAD_FUNCTIONS})
  add_stand_in(qkvgemm_stand_in_dl libdl.so.2 ${LIBDL_FUNCTIONS})
endif()

# The C++ runtime is linked into TARGET and, by the target's version script, hidden, so that it neither needs a newer one than
# its host has nor lends its host a symbol. The C library may be as old as ONNX Runtime's.
function(link_portably target)
  target_link_options(${target} PRIVATE -static-libstdc++)
  if(NOT TARGET qkvgemm_stand_in_dl)
    return()  # musl, or a processor whose first release of glibc is not known: what is here is taken
  endif()
  target_sources(${target} PRIVATE ${CMAKE_SOURCE_DIR}/ops/portable/glibc.cc)
  # The C++ runtime refers to them behind all other libraries, when it is too late to be needed.
  target_link_libraries(${target} PRIVATE
    -Wl,--push-state,--no-as-needed qkvgemm_stand_in_pthread qkvgemm_stand_in_dl -Wl,--pop-state)
  # Their folder must not become a place where the loader looks for libraries.
  set_target_properties(${target} PROPERTIES SKIP_BUILD_RPATH ON)
endfunction()
