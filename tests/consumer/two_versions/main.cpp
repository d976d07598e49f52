// Both libraries train, in every rank of this one program and at the same time.
#include <functional>

namespace now {
void train(const std::function<void()>& meanwhile);
}
namespace later {
void train(const std::function<void()>& meanwhile);
}

int main() {
  now::train([] { later::train([] {}); });
}
