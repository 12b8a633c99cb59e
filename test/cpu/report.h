// What the tests of this folder count together.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>

inline int failures = 0;
inline int64_t cases = 0;

inline void Fail(const std::string& what) {
  if (++failures <= 20) std::printf("FAIL %s\n", what.c_str());
}

void TestPlan();
