// Exceptions: landing pads, and blocks that only they reach.
#include <cstdio>
#include <stdexcept>
#include <string>

struct Guard {
  int &count;
  explicit Guard(int &c) : count(c) { ++count; }
  ~Guard() { --count; }
};

template <typename T> T twice(T value) {
  if (value < 0) throw std::runtime_error("negative");
  return value + value;
}

static int risky(int n) {
  int depth = 0;
  try {
    Guard guard(depth);
    std::string text = std::to_string(twice(n));
    if (text.size() > 1) throw n;
    return twice<long>(n);
  } catch (const std::runtime_error &error) {
    return -1;
  } catch (int value) {
    return value + depth;
  }
}

int main() {
  int sum = 0;
  for (int i = -2; i < 8; i++) sum += risky(i);
  std::printf("%d\n", sum);
}
