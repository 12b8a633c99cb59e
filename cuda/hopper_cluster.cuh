// Tiles whose blocks share what they read: in a cluster of blocks, those with the same columns each load a
// part of the weights for all of them, and those with the same rows a part of the rows. What L2 delivers, the
// limit where tiles are small, is read once for all.
#pragma once

#include "cuda/hopper_tile.cuh"

namespace qkvgemm::cuda::hopper {

// The address of a place in this block's shared memory in that of block `rank` of the cluster.
__device__ __forceinline__ uint32_t MapToBlock(uint32_t address, int rank) {
  uint32_t mapped;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}
// Of the scope of a block: what this thread wrote is not ordered before for others, which would take a fence
// of the whole device, a quarter of a microsecond each time. What goes before here is matrix instructions
// that have read their operands.
__device__ __forceinline__ void BarrierArriveAt(uint32_t mapped) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(mapped) : "memory");
}
// 16 bytes to another block's shared memory, whose barrier expects them.
__device__ __forceinline__ void StoreToBlock(uint32_t mapped, const float (&v)[4], uint32_t mapped_barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
          mapped),
      "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]), "r"(mapped_barrier)
      : "memory");
}
__device__ __forceinline__ void StoreToBlock(uint32_t mapped, float a, float b, uint32_t mapped_barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(mapped),
      "f"(a), "f"(b), "r"(mapped_barrier)
      : "memory");
}
// For what other blocks have stored here.
__device__ __forceinline__ void BarrierWaitForCluster(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nretry:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra retry;\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
// Until all threads of the cluster are here.
__device__ __forceinline__ void ClusterSync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

}  // namespace qkvgemm::cuda::hopper
