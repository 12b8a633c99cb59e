// The CUDA devices that the driver shows, asked for without the CUDA toolkit.
#pragma once

#include <string>
#include <vector>

namespace qkvgemm::session {

// "NVIDIA H200, compute capability 9.0" for each device; empty where there is no driver or no device.
std::vector<std::string> CudaDevices();

}  // namespace qkvgemm::session
