#include "ops/attributes.h"

#include <cstring>

#include "ops/ort_util.h"

namespace qkvgemm {
namespace {

// An absent attribute takes its default; one of another type is an error. The API reports both as a failure,
// with these words for the first.
bool IsAbsent(const OrtApi& api, OrtStatus* status) {
  return std::strstr(api.GetErrorMessage(status), "No attribute with") != nullptr;
}

template <typename Read>
bool ReadOptional(const OrtApi& api, const char* name, const char* expected, const Read& read) {
  OrtStatus* status = read();
  if (status == nullptr) return true;
  const bool absent = IsAbsent(api, status);
  const std::string found = api.GetErrorMessage(status);
  api.ReleaseStatus(status);
  if (absent) return false;
  throw ContractError{std::string("attribute '") + name + "': expected " + expected +
                      ", found something else: " + found};
}

void ReadFlag(const OrtApi& api, const OrtKernelInfo* info, const char* name, bool* flag) {
  int64_t value = 0;
  if (!ReadOptional(api, name, "an int",
                    [&] { return api.KernelInfoGetAttribute_int64(info, name, &value); }))
    return;
  if (value != 0 && value != 1)
    throw ContractError{std::string("attribute '") + name + "': expected 0 or 1, found " +
                        std::to_string(value)};
  *flag = value == 1;
}

void ReadInt(const OrtApi& api, const OrtShapeInferContext* context, const char* name, bool* flag) {
  const OrtOpAttr* attribute = nullptr;
  if (OrtStatus* absent = api.ShapeInferContext_GetAttribute(context, name, &attribute)) {
    api.ReleaseStatus(absent);
    return;
  }
  int64_t value = 0;
  size_t length = 0;
  ThrowIfError(api.ReadOpAttr(attribute, ORT_OP_ATTR_INT, &value, sizeof value, &length));
  *flag = value != 0;
}

}  // namespace

Attributes ReadAttributes(const OrtApi& api, const OrtKernelInfo* info) {
  Attributes a;
  size_t length = 0;
  if (ReadOptional(api, "norm_type", "a string",
                   [&] { return api.KernelInfoGetAttribute_string(info, "norm_type", nullptr, &length); })) {
    std::string name(length, '\0');
    ThrowIfError(api.KernelInfoGetAttribute_string(info, "norm_type", name.data(), &length));
    name.resize(length == 0 ? 0 : length - 1);  // the length counts the terminating zero
    a.norm_type = ParseNormType(name);
  }
  ReadOptional(api, "epsilon", "a float",
               [&] { return api.KernelInfoGetAttribute_float(info, "epsilon", &a.epsilon); });
  ReadFlag(api, info, "transposed", &a.transposed);
  ReadFlag(api, info, "emit_norm", &a.emit_norm);
  ReadFlag(api, info, "activation_quant", &a.activation_quant);
  if (ReadOptional(api, "splits", "ints",
                   [&] { return api.KernelInfoGetAttributeArray_int64(info, "splits", nullptr, &length); })) {
    // An attribute of another type looks like an empty list here.
    if (length == 0)
      throw ContractError{"attribute 'splits': expected ints, at least one, found none or another type"};
    a.splits.resize(length);
    ThrowIfError(api.KernelInfoGetAttributeArray_int64(info, "splits", a.splits.data(), &length));
  }
  CheckAttributes(a);
  return a;
}

Attributes ReadShapeAttributes(const OrtApi& api, const OrtShapeInferContext* context) {
  Attributes a;
  ReadInt(api, context, "transposed", &a.transposed);
  ReadInt(api, context, "emit_norm", &a.emit_norm);
  const OrtOpAttr* attribute = nullptr;
  if (OrtStatus* absent = api.ShapeInferContext_GetAttribute(context, "splits", &attribute)) {
    api.ReleaseStatus(absent);
    return a;
  }
  // The first call fails for want of room and says how many bytes there are.
  size_t bytes = 0;
  int64_t none = 0;
  OrtStatus* status = api.ReadOpAttr(attribute, ORT_OP_ATTR_INTS, &none, 0, &bytes);
  if (status != nullptr) api.ReleaseStatus(status);
  a.splits.resize(bytes / sizeof(int64_t));
  if (bytes > 0) ThrowIfError(api.ReadOpAttr(attribute, ORT_OP_ATTR_INTS, a.splits.data(), bytes, &bytes));
  return a;
}

}  // namespace qkvgemm
