// Memory of data that has been read for the last time.
#pragma once

#include <cstddef>

namespace qkvgemm {

// Takes the pages that lie within [data, data + bytes) out of this process's resident memory, where all of
// them are those of a mapped file, as ONNX Runtime's are of external data. They stay in the system's cache,
// and come back from there if they are read again. Elsewhere, and where Linux does not tell, nothing happens.
void ReleaseFilePages(const void* data, size_t bytes);

}  // namespace qkvgemm
