#include "test/cuda/cases.h"

#include <array>
#include <random>
#include <utility>

#include "test/kernels/check.h"

namespace qkvgemm::support {
namespace {

constexpr DType kFloats[] = {DType::kFloat, DType::kFloat16, DType::kBFloat16};
constexpr NormType kNorms[] = {NormType::kLayerNorm, NormType::kRmsNorm, NormType::kNone};

class Builder {
 public:
  explicit Builder(unsigned seed) : random_(seed) {}

  std::vector<CudaCase> Build() {
    Empty();
    Shapes();
    Types();
    Options();
    Int8();
    Inputs();
    Alignment();
    LongRows();
    ZeroRows();
    Large();
    Clusters();
    Narrow();
    Parts();
    return std::move(cases_);
  }

 private:
  template <typename T>
  auto Pick(const T& from) {
    return *(std::begin(from) + static_cast<long>(random_() % std::size(from)));
  }
  bool Coin() { return random_() % 2 == 0; }

  CudaCase& Add(const char* group, int64_t m, int64_t k, int64_t n, DType t, DType tw) {
    CudaCase& added = cases_.emplace_back();
    added.group = group;
    Problem& p = added.c.p;
    p.m = m, p.k = k, p.n = n, p.t = t, p.tw = tw;
    added.c.splits = {n};
    if (tw == DType::kInt8) p.scale_layout = ScaleLayout::kColumnGroups, p.scale_groups = n;
    return added;
  }

  // What no other line of a group sets, at random.
  void Vary(CudaCase& added) {
    Case& c = added.c;
    Problem& p = c.p;
    const DType vector_types[] = {p.t, DType::kFloat};
    p.gamma_type = Pick(vector_types), p.beta_type = Pick(vector_types), p.bias_type = Pick(vector_types);
    p.norm = Pick(kNorms);
    p.transposed = Coin();
    c.gamma = random_() % 4 != 0, c.beta = random_() % 4 != 0, c.bias = random_() % 4 != 0;
    c.emit_norm = p.norm != NormType::kNone && random_() % 4 == 0;
    c.splits = Split(p.n, Pick(kSplits));
    added.input_aligned = random_() % 3 != 0, added.outputs_aligned = random_() % 3 != 0;
    if (random_() % 8 == 0) added.unwanted = 1u << (random_() % c.splits.size());
  }

  DType WeightType(DType t) {
    const DType types[] = {t, t, DType::kFloat, DType::kFloat16, DType::kBFloat16, DType::kInt8};
    return Pick(types);
  }

  void Empty() {
    for (DType t : kFloats)
      for (DType tw : {t, DType::kInt8})
        for (const auto& [m, k, n] : {std::array<int64_t, 3>{0, 64, 64}, {3, 0, 24}, {3, 64, 0}, {0, 0, 0}}) {
          if (tw == DType::kInt8 && n == 0) continue;  // no scale divides no columns
          CudaCase& added = Add("empty", m, k, n, t, tw);
          added.c.emit_norm = true;
        }
    for (const auto& widths : {std::vector<int64_t>{0, 40, 0, 24}, {64, 0}, {0, 0, 64}}) {
      CudaCase& added = Add("empty", 5, 72, 64, DType::kFloat16, DType::kFloat16);
      added.c.splits = widths;
    }
  }

  void Shapes() {
    const int64_t ms[] = {1,  2,  3,  7,   8,   9,   15,  16,  17,  31,  33,
                          63, 64, 65, 127, 128, 129, 191, 193, 255, 257, 300};
    const int64_t ks[] = {1,  2,  7,   8,   9,   15,  16,  17,  31,  63,  64,
                          65, 72, 120, 127, 128, 136, 192, 200, 256, 768, 1000};
    const int64_t ns[] = {1,  2,   7,   8,   9,   15,  16,  17,  31,  63,  64,  65, 96,
                          97, 127, 128, 129, 136, 191, 192, 193, 200, 256, 264, 384};
    const auto one = [&](int64_t m, int64_t k, int64_t n) {
      const DType t = Pick(kFloats);
      Vary(Add("shapes", m, k, n, t, WeightType(t)));
    };
    for (int64_t m : ms)
      for (int64_t n : ns) one(m, Pick(ks), n);
    for (int64_t m : ms)
      for (int64_t k : ks) one(m, k, Pick(ns));
    for (int64_t k : ks)
      for (int64_t n : ns) one(Pick(ms), k, n);
  }

  // Tiles that clusters of blocks have (cuda/plan.cc), of whole and of broken tiles.
  void Clusters() {
    const int64_t ks[] = {8, 64, 72, 136, 520, 1000, 1544, 3000};
    for (DType t : {DType::kFloat16, DType::kBFloat16})
      for (int64_t m : {33, 64, 96, 100, 128, 190, 255, 384, 500})
        for (int64_t n : {200, 400, 512, 700, 768, 1024})
          Vary(Add("clusters", m, Pick(ks), n, t, WeightType(t)));
  }

  // Narrow tiles, some blocks with several, and outputs that they cut anywhere; 16 bytes at a time may be
  // stored.
  void Narrow() {
    const int64_t ks[] = {8, 64, 72, 136, 520, 1000, 3000};
    for (DType t : {DType::kFloat16, DType::kBFloat16})
      for (int64_t m : {9, 16, 31, 64, 90})
        for (int64_t n : {40, 80, 144, 240, 304, 480}) {
          CudaCase& added = Add("narrow", m, Pick(ks), n, t, t);
          Vary(added);
          const int64_t first = n / 24 * 8;
          added.c.splits = {first, n - first};
          added.input_aligned = added.outputs_aligned = true, added.unwanted = 0;
        }
    for (int64_t n : {2200, 2704}) Vary(Add("narrow", 300, 8, n, DType::kFloat16, DType::kFloat16));
  }

  // K that several blocks share out: long, of few columns and rows.
  void Parts() {
    for (DType t : {DType::kFloat16, DType::kBFloat16})
      for (int64_t m : {1, 16, 31, 64, 100, 128})
        for (int64_t k : {256, 520, 1003, 4096})
          for (int64_t n : {64, 130, 704})
            for (DType tw : {t, DType::kInt8}) Vary(Add("parts", m, k, n, t, tw));
    // Stores of 16 bytes that the copy engine does not make.
    for (DType t : {DType::kFloat16, DType::kBFloat16})
      for (DType tw : {t, DType::kInt8}) {
        CudaCase& added = Add("parts", 64, 520, 768, t, tw);
        Vary(added);
        added.c.splits = {264, 504};
        added.outputs_aligned = true, added.unwanted = 0;
      }
  }

  void Types() {
    for (DType t : kFloats)
      for (DType tw : {DType::kFloat, DType::kFloat16, DType::kBFloat16, DType::kInt8})
        for (NormType norm : kNorms)
          for (int64_t m : {1, 9, 70, 200})
            for (unsigned types = 0; types < 8; types += m == 9 || m == 70 ? 1 : 7) {
              CudaCase& added = Add("types", m, m == 9 ? 96 : 200, m == 70 ? 136 : 72, t, tw);
              added.c.p.norm = norm;
              added.c.p.gamma_type = types & 1 ? t : DType::kFloat;
              added.c.p.beta_type = types & 2 ? t : DType::kFloat;
              added.c.p.bias_type = types & 4 ? t : DType::kFloat;
            }
  }

  // Every combination of what may be present or not.
  void Options() {
    for (NormType norm : kNorms)
      for (unsigned bits = 0; bits < 32; ++bits) {
        if (norm == NormType::kNone && (bits & 0xb) != 0) continue;
        if (norm == NormType::kRmsNorm && (bits & 2) != 0) continue;
        for (int parts : kSplits)
          for (bool inline_outputs : {true, false}) {
            const DType t = Pick(kFloats);
            CudaCase& added = Add("options", inline_outputs ? 33 : 5, 136, inline_outputs ? 216 : 200, t, t);
            Case& c = added.c;
            c.p.norm = norm;
            c.gamma = bits & 1, c.beta = bits & 2, c.bias = bits & 4, c.emit_norm = bits & 8;
            c.p.transposed = bits & 16;
            c.splits = Split(c.p.n, parts);
            if (parts == 3 && inline_outputs) c.splits = {128, 64, 24};  // each allows vector stores
            if (parts > 1 && Coin()) added.unwanted = 1u << (random_() % static_cast<unsigned>(parts));
            if (parts > 1 && random_() % 8 == 0) added.unwanted = ~0u;  // nothing but perhaps norm
          }
      }
  }

  void Int8() {
    for (DType t : kFloats)
      for (int64_t m : {1, 17, 130})
        for (bool zero_point : {false, true})
          for (bool quant : {false, true})
            for (int64_t layout :
                 {1, 2, 5, 0, -8, -32, -64, -320}) {  // groups; 0: per column; negative: rows a block
              const int64_t n = layout == 5 ? 200 : Coin() ? 72 : 130;
              CudaCase& added = Add("int8", m, 320, n, t, DType::kInt8);
              Vary(added);
              Problem& p = added.c.p;
              p.has_zero_point = zero_point, p.activation_quant = quant;
              p.scale_type = Coin() ? DType::kFloat : DType::kFloat16;
              p.scale_layout = layout < 0 ? ScaleLayout::kBlocks : ScaleLayout::kColumnGroups;
              p.scale_block = layout < 0 ? -layout : 0;
              p.scale_groups = layout < 0 ? 0 : layout == 0 ? n : layout;
            }
    for (int64_t k :
         {1, 15, 16, 17, 63, 65, 127, 128, 129, 1000})  // the depth of int8 instructions and its tails
      for (bool quant : {false, true})
        for (int64_t m : {3, 64, 129}) {
          CudaCase& added = Add("int8", m, k, 96, Pick(kFloats), DType::kInt8);
          Vary(added);
          added.c.p.activation_quant = quant;
        }
  }

  // Values that fold badly: what overflows, what underflows, what cancels.
  void Inputs() {
    for (Values values : {Values::kMixed, Values::kPlain, Values::kLarge, Values::kTinyGamma,
                          Values::kHugeGamma, Values::kSpreadGamma})
      for (DType t : kFloats)
        for (NormType norm : {NormType::kLayerNorm, NormType::kRmsNorm})
          for (DType tw : {t, DType::kInt8})
            for (const auto& [m, k, n] :
                 {std::array<int64_t, 3>{16, 200, 256}, {130, 1024, 192}, {40, 768, 520}}) {
              CudaCase& added = Add("inputs", m, k, n, t, tw);
              added.c.values = values;
              added.c.p.norm = norm;
              added.c.p.gamma_type = Coin() ? t : DType::kFloat;
              added.c.emit_norm = m == 40;
              if (tw == DType::kInt8) added.c.p.activation_quant = m == 40;
            }
    for (DType t : kFloats)
      for (const auto& [m, k, n] : {std::array<int64_t, 3>{3, 100, 64}, {129, 1000, 96}}) {
        CudaCase& added = Add("inputs", m, k, n, t, DType::kInt8);
        added.c.values = Values::kTies;
        added.c.p.norm = NormType::kRmsNorm, added.c.gamma = false;
        added.c.p.activation_quant = true;
      }
  }

  void Alignment() {
    for (bool input : {false, true})
      for (bool outputs : {false, true})
        for (DType t : kFloats)
          for (DType tw : {t, DType::kInt8})
            for (const auto& [k, n] : {std::array<int64_t, 2>{64, 128}, {72, 200}, {63, 17}, {264, 192}})
              for (int64_t m : {1, 40, 129}) {
                CudaCase& added = Add("alignment", m, k, n, t, tw);
                added.c.splits = Split(n, m == 40 ? 3 : 1);
                added.c.emit_norm = m == 129;
                added.c.p.norm = m == 129 ? NormType::kLayerNorm : Pick(kNorms);
                added.input_aligned = input, added.outputs_aligned = outputs;
              }
  }

  // Longer than what a block holds of a row while it normalises it.
  void LongRows() {
    for (DType t : kFloats)
      for (DType tw : {t, DType::kInt8})
        for (int64_t k : {4104, 5003})
          for (bool quant : {false, true}) {
            if (quant && tw != DType::kInt8) continue;
            CudaCase& added = Add("long_rows", 5, k, 72, t, tw);
            added.c.emit_norm = true;
            added.c.p.norm = Pick(kNorms);
            added.c.p.activation_quant = quant;
            added.input_aligned = Coin();
          }
  }

  void ZeroRows() {
    for (DType t : kFloats)
      for (NormType norm : {NormType::kLayerNorm, NormType::kRmsNorm})
        for (float epsilon : {0.0f, 1e-12f, 1e-5f})
          for (DType tw : {t, DType::kInt8})
            for (bool quant : {false, true}) {
              if (quant && tw != DType::kInt8) continue;
              CudaCase& added = Add("zero_rows", 9, 40, 72, t, tw);
              added.c.p.norm = norm, added.c.p.epsilon = epsilon, added.c.p.activation_quant = quant;
              added.c.emit_norm = true;
            }
  }

  void Large() {
    const std::array<int64_t, 3> shapes[] = {{1, 4096, 12288},   {8, 4096, 6144},   {16, 8192, 1024},
                                             {64, 4096, 6144},   {300, 2048, 6144}, {512, 16384, 512},
                                             {1027, 1024, 3072}, {2049, 768, 2304}, {4100, 1024, 1152},
                                             {20000, 64, 72},    {3, 256, 50257},   {70000, 8, 16}};
    for (const auto& [m, k, n] : shapes)
      for (DType t : kFloats)
        for (DType tw : {t, DType::kInt8}) {
          CudaCase& added = Add("large", m, k, n, t, tw);
          added.c.p.norm = Coin() ? NormType::kLayerNorm : NormType::kRmsNorm;
          added.c.p.activation_quant = tw == DType::kInt8 && Coin();
          added.c.splits = Split(n, 3);
        }
  }

  static constexpr int kSplits[] = {1, 2, 3, 9};
  std::mt19937 random_;
  std::vector<CudaCase> cases_;
};

}  // namespace

std::vector<CudaCase> CudaCases(unsigned seed, bool quick) {
  std::vector<CudaCase> all = Builder(seed).Build();
  if (!quick) return all;
  std::vector<CudaCase> few;
  for (size_t i = 0; i < all.size(); ++i) {
    const Problem& p = all[i].c.p;
    if (i % 37 == seed % 37 && p.m <= 300 && p.m * p.k * p.n < int64_t{1} << 23) few.push_back(all[i]);
  }
  return few;
}

std::string Describe(const CudaCase& c) {
  static constexpr const char* kTypes[] = {"float", "fp16", "bf16", "int8"};
  static constexpr const char* kNormNames[] = {"layer_norm", "rms_norm", "none"};
  static constexpr const char* kValues[] = {"mixed",      "plain",        "large", "tiny_gamma",
                                            "huge_gamma", "spread_gamma", "ties"};
  const Problem& p = c.c.p;
  const auto type = [](DType t) { return kTypes[static_cast<int>(t)]; };
  const auto number = [](int64_t v) { return std::to_string(v); };
  std::string text = c.group + " m=" + number(p.m) + " k=" + number(p.k) + " n=" + number(p.n) +
                     " t=" + type(p.t) + " tw=" + type(p.tw) + " " + kNormNames[static_cast<int>(p.norm)];
  if (p.norm != NormType::kNone && c.c.gamma) text += std::string(" gamma=") + type(p.gamma_type);
  if (p.norm == NormType::kLayerNorm && c.c.beta) text += std::string(" beta=") + type(p.beta_type);
  if (c.c.bias) text += std::string(" bias=") + type(p.bias_type);
  if (p.norm != NormType::kNone && c.c.emit_norm) text += " emit_norm";
  if (p.transposed) text += " transposed";
  if (p.epsilon != 1e-5f) text += " epsilon=" + std::to_string(p.epsilon);
  text += " splits=";
  for (size_t s = 0; s < c.c.splits.size(); ++s) {
    text += (s == 0 ? "" : ",") + number(c.c.splits[s]);
    if (c.unwanted >> s & 1) text += "!";
  }
  if (p.tw == DType::kInt8) {
    text += std::string(" scale=") + type(p.scale_type);
    text += p.scale_layout == ScaleLayout::kBlocks ? " block=" + number(p.scale_block)
                                                   : " groups=" + number(p.scale_groups);
    if (p.has_zero_point) text += " zero_point";
    if (p.activation_quant) text += " activation_quant";
  }
  text += std::string(" values=") + kValues[static_cast<int>(c.c.values)];
  if (!c.input_aligned) text += " input_misaligned";
  if (!c.outputs_aligned) text += " outputs_misaligned";
  return text;
}

}  // namespace qkvgemm::support
