// Expectations for the C++ test programs. A failed one prints where it stands, the values it saw
// and the contexts it was met in, and the program goes on; report() is what main() returns.
#pragma once

#include <cstdint>
#include <iostream>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

namespace lrfast::test {

struct Tally {
  int64_t passed = 0;
  int64_t failed = 0;
  std::vector<std::string> contexts;
};

inline Tally& tally() {
  static Tally instance;
  return instance;
}

// Functions of the tests are not inlined where speed does not ask for it: thousands of calls stand
// in the programs, and under sanitizers the compiler would spend its time on them.
#define LRFAST_NOINLINE __attribute__((noinline))

template <class T>
LRFAST_NOINLINE std::string as_text(const T& value) {
  std::ostringstream out;
  out.precision(17);
  if constexpr (std::is_enum_v<T> || (std::is_integral_v<T> && sizeof(T) == 1)) {
    out << static_cast<int64_t>(value);
  } else {
    out << value;
  }
  return out.str();
}
inline const char* as_text(const char* value) { return value; }

template <class... Part>
std::string text(const Part&... parts) {
  std::string joined;
  ((joined += as_text(parts)), ...);
  return joined;
}

// Names the case at hand in the messages of all expectations made while it lives.
struct Context {
  template <class... Part>
  explicit Context(const Part&... parts) {
    tally().contexts.push_back(text(parts...));
  }
  ~Context() { tally().contexts.pop_back(); }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
};

constexpr int64_t kPrintedFailures = 20;

LRFAST_NOINLINE inline void fail(const char* file, int line, const std::string& message) {
  tally().failed += 1;
  if (tally().failed > kPrintedFailures) return;
  std::cout << file << ":" << line << ": " << message;
  for (const std::string& context : tally().contexts) std::cout << " [" << context << "]";
  std::cout << std::endl;
}

LRFAST_NOINLINE inline void expect(bool holds, const char* what, const char* file, int line) {
  tally().passed += holds;
  if (!holds) fail(file, line, what);
}

template <class Left, class Right>
LRFAST_NOINLINE void expect_equal(const Left& left, const Right& right, const char* what,
                                  const char* file, int line) {
  const bool holds = left == right;
  tally().passed += holds;
  if (!holds) fail(file, line, text(what, ": ", left, " != ", right));
}

// |left - right| <= bound; false where one of them is NaN.
template <class Value>
LRFAST_NOINLINE void expect_near(const Value& left, const Value& right, const Value& bound,
                                 const char* what, const char* file, int line) {
  const Value distance = left < right ? right - left : left - right;
  const bool holds = distance <= bound;
  tally().passed += holds;
  if (!holds) {
    fail(file, line, text(what, ": ", left, " and ", right, " differ by more than ", bound));
  }
}

inline int report(const char* program) {
  std::cout << program << ": " << tally().passed << " passed, " << tally().failed << " failed\n";
  return tally().failed == 0 ? 0 : 1;
}

}  // namespace lrfast::test

#define EXPECT(condition) lrfast::test::expect((condition), #condition, __FILE__, __LINE__)
#define EXPECT_EQ(left, right) \
  lrfast::test::expect_equal((left), (right), #left " == " #right, __FILE__, __LINE__)
#define EXPECT_NEAR(left, right, bound) \
  lrfast::test::expect_near((left), (right), (bound), #left " ~ " #right, __FILE__, __LINE__)
