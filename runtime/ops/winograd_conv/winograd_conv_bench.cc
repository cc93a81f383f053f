// Time per convolution on all threads, for real layers; each result is checked before it is timed.
//
//   [HANDHELD_ISA=NAME] winograd_conv_bench [--threads N] [--repeat N] [channels_in,channels_out,size[,tile[,fp32|bf16|fp16[,batch]]]]...
//
// Beside each time stands the speed that the machine had at that moment, by a loop of multiplications: machines that are shared or too hot
// slow down by half, so the times of windows below nine tenths of the fastest are left out.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <string>
#include <thread>

#include "../testing.h"
#include "oracle.h"
#include "winograd_conv.h"

#if defined(HANDHELD_X86)
#include <immintrin.h>
#endif

using namespace handheld;

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Threads that wait between calls as those of a session do; the caller is one of them.
class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  }
  ~Pool() {
    stop_ = true;
    ++generation_;
    for (std::thread& worker : workers_) worker.join();
  }
  void run(std::int64_t count, const std::function<void(std::int64_t)>& task) {
    task_ = &task;
    count_ = count;
    next_ = 0;
    busy_ = static_cast<int>(workers_.size());
    ++generation_;
    take();
    while (busy_ > 0) pause();
  }

 private:
  static void pause() {
#if defined(HANDHELD_X86)
    _mm_pause();
#endif
  }
  void take() {
    for (std::int64_t index = next_++; index < count_; index = next_++) (*task_)(index);
  }
  void work() {
    for (int seen = 0;;) {
      while (generation_ == seen) pause();
      seen = generation_;
      if (stop_) return;
      take();
      --busy_;
    }
  }

  std::vector<std::thread> workers_;
  const std::function<void(std::int64_t)>* task_ = nullptr;
  std::int64_t count_ = 0;
  std::atomic<std::int64_t> next_{0};
  std::atomic<int> busy_{0}, generation_{0};
  std::atomic<bool> stop_{false};
};

#if defined(HANDHELD_X86)
__attribute__((target("avx512f"))) void spin_avx512(std::int64_t steps) {
  // 12 sums hide the latency; the instructions are written down, so that no optimization level makes something else of them
  for (std::int64_t step = 0; step < steps; ++step) {
    asm volatile(
        "vfmadd231ps %%zmm30, %%zmm30, %%zmm0\n vfmadd231ps %%zmm30, %%zmm30, %%zmm1\n vfmadd231ps %%zmm30, %%zmm30, %%zmm2\n"
        "vfmadd231ps %%zmm30, %%zmm30, %%zmm3\n vfmadd231ps %%zmm30, %%zmm30, %%zmm4\n vfmadd231ps %%zmm30, %%zmm30, %%zmm5\n"
        "vfmadd231ps %%zmm30, %%zmm30, %%zmm6\n vfmadd231ps %%zmm30, %%zmm30, %%zmm7\n vfmadd231ps %%zmm30, %%zmm30, %%zmm8\n"
        "vfmadd231ps %%zmm30, %%zmm30, %%zmm9\n vfmadd231ps %%zmm30, %%zmm30, %%zmm10\n vfmadd231ps %%zmm30, %%zmm30, %%zmm11\n" ::
            : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11");
  }
}
#endif

// GFLOP/s of all threads in some 2 ms of multiplications and additions; 0 where there is no AVX-512.
double probe(Pool& pool, int threads) {
#if defined(HANDHELD_X86)
  if (!__builtin_cpu_supports("avx512f")) return 0;
  constexpr std::int64_t kSteps = 1 << 19;
  const double start = now();
  pool.run(threads, [](std::int64_t) { spin_avx512(kSteps); });
  return threads * static_cast<double>(kSteps) * 12 * 32 / (now() - start) / 1e9;
#else
  return static_cast<void>(pool), static_cast<void>(threads), 0;
#endif
}

struct Layer {
  std::int64_t channels_in, channels_out, size;
  int tile = 4;
  Operands operands = Operands::kFloat32;
  std::int64_t batch = 1;
};

struct Window {
  double seconds, speed;
};

void measure(const Layer& layer, Isa isa, int threads, int repeat, Pool& pool) {
  const std::int64_t positions = layer.size * layer.size;
  const auto in = static_cast<std::size_t>(layer.batch * layer.channels_in * positions);
  const auto out = static_cast<std::size_t>(layer.batch * layer.channels_out * positions);
  const std::vector<float> x = testing::normal(in, 0, 1, 1), bias = testing::normal(static_cast<std::size_t>(layer.channels_out), 0, 1, 2);
  // the kernel of one output channel, for all: packing the real number of them takes longer than all else here
  const std::vector<float> one = testing::normal(static_cast<std::size_t>(layer.channels_in * 9), 0, 1, 3);
  std::vector<float> g;
  for (int i = 0; i < kPanelChannels; ++i) g.insert(g.end(), one.begin(), one.end());
  const testing::Packed panel = testing::pack(g, kPanelChannels, layer.channels_in, layer.tile, layer.operands);
  const std::int64_t panels = (layer.channels_out + kPanelChannels - 1) / kPanelChannels;
  testing::Packed packed;
  for (std::int64_t i = 0; i < panels; ++i) {
    packed.floats.insert(packed.floats.end(), panel.floats.begin(), panel.floats.end());
    packed.halves.insert(packed.halves.end(), panel.halves.begin(), panel.halves.end());
  }
  std::vector<float> y(out + 16);
  float* const aligned = reinterpret_cast<float*>((reinterpret_cast<std::uintptr_t>(y.data()) + 63) / 64 * 64);
  const WinogradConv task{x.data(), packed.data(), layer.operands, bias.data(), nullptr, aligned, layer.batch, layer.channels_in,
                          layer.channels_out, layer.size, layer.size, layer.tile, false};
  const std::size_t bytes = winograd_conv_scratch(task, isa, threads);
  std::vector<float> memory(bytes / sizeof(float) + 16);
  void* const scratch = reinterpret_cast<void*>((reinterpret_cast<std::uintptr_t>(memory.data()) + 63) / 64 * 64);
  const Parallel parallel = [&](std::int64_t count, const std::function<void(std::int64_t)>& each) { pool.run(count, each); };

  winograd_conv(task, isa, threads, scratch, parallel);
  double squares = 0, errors = 0;
  for (std::size_t i = 0; i < 64; ++i) {
    const auto at = static_cast<std::int64_t>(out / 64 * i + i % 7);
    const std::int64_t o = at / positions % layer.channels_out;
    const WinogradConv first{x.data(), nullptr, Operands::kFloat32, nullptr, nullptr, nullptr, layer.batch, layer.channels_in, 1,
                             layer.size, layer.size, layer.tile, false};
    const std::int64_t image = at / positions / layer.channels_out, row = at / layer.size % layer.size, column = at % layer.size;
    const double expected =
        testing::expected_at(first, one, image, 0, row, column) + static_cast<double>(bias[static_cast<std::size_t>(o)]);
    squares += expected * expected;
    errors += std::pow(static_cast<double>(aligned[at]) - expected, 2);
  }
  const double error = std::sqrt(errors / squares);
  HANDHELD_CHECK(error < (layer.operands == Operands::kFloat32 ? 2e-5 : 0.05), "the result is wrong by %g", error);

  std::vector<Window> windows;
  double fastest = 0;
  for (int run = 0; run < repeat; ++run) {
    const double before = probe(pool, threads), start = now();
    winograd_conv(task, isa, threads, scratch, parallel);
    const double seconds = now() - start;
    windows.push_back({seconds, std::min(before, probe(pool, threads))});
    fastest = std::max(fastest, windows.back().speed);
  }
  std::vector<double> kept;
  for (const Window& window : windows) {
    if (window.speed >= 0.9 * fastest) kept.push_back(window.seconds);
  }
  std::sort(kept.begin(), kept.end());
  const double seconds = kept[kept.size() / 2];
  const auto matrix = static_cast<double>(layer.channels_in * layer.channels_out);
  const double direct = 2.0 * 9 * matrix * static_cast<double>(layer.batch * positions) / 1e9;
  const double tiles = std::ceil(static_cast<double>(layer.size) / layer.tile), alpha = layer.tile + 2;
  const double products = 2.0 * alpha * alpha * matrix * static_cast<double>(layer.batch) * tiles * tiles / 1e9;
  std::printf("%5d %5d %4d %2d  F(%d) %-8s %-10s ", static_cast<int>(layer.channels_in), static_cast<int>(layer.channels_out),
              static_cast<int>(layer.size), static_cast<int>(layer.batch), layer.tile, name_of(layer.operands), name_of(isa));
  std::printf("%8.2f ms (best %8.2f, %2d of %2d) ", seconds * 1e3, kept[0] * 1e3, static_cast<int>(kept.size()), repeat);
  std::printf("%6.0f GFLOP/s direct, %5.0f products, peak %4.0f (%3.0f %%), error %.1e, scratch %.1f MB\n", direct / seconds,
              products / seconds, fastest, fastest > 0 ? 100 * products / seconds / fastest : 0, error, static_cast<double>(bytes) / 1e6);
  std::fflush(stdout);
}

Layer layer_of(const std::string& text) {
  Layer layer;
  int in = 0, out = 0, size = 0, tile = 4, batch = 1;
  char kind[8] = "fp32";
  std::sscanf(text.c_str(), "%d,%d,%d,%d,%7[^,],%d", &in, &out, &size, &tile, kind, &batch);
  layer.channels_in = in;
  layer.channels_out = out;
  layer.size = size;
  layer.tile = tile;
  const std::string precision = kind;
  layer.operands = precision == "bf16" ? Operands::kBfloat16 : precision == "fp16" ? Operands::kFloat16 : Operands::kFloat32;
  layer.batch = batch;
  return layer;
}

}  // namespace

int main(int count, char** arguments) {
  int threads = static_cast<int>(std::thread::hardware_concurrency()), repeat = 7;
  Isa isa = selected_isa();
  std::vector<Layer> layers;
  for (int i = 1; i < count; ++i) {
    const std::string text = arguments[i];
    if (text == "--threads" && i + 1 < count) {
      threads = std::atoi(arguments[++i]);
    } else if (text == "--repeat" && i + 1 < count) {
      repeat = std::atoi(arguments[++i]);
    } else {
      layers.push_back(layer_of(text));
    }
  }
  if (layers.empty()) {
    const std::int64_t shapes[][3] = {{320, 320, 64},    {640, 320, 64},    {960, 320, 64},  {640, 640, 32},  {1920, 640, 32},
                                      {1280, 1280, 16},  {2560, 1280, 16},  {1280, 1280, 8}, {512, 512, 64},  {512, 512, 128},
                                      {512, 512, 256},   {256, 256, 512},   {128, 128, 512}, {256, 128, 512}};
    for (const auto& shape : shapes) {
      if (shape[2] <= 16) layers.push_back({shape[0], shape[1], shape[2], 2, Operands::kFloat32});
      if (shape[2] > 8) layers.push_back({shape[0], shape[1], shape[2], 4, Operands::kFloat32});
      if (shape[2] > 16) layers.push_back({shape[0], shape[1], shape[2], 6, Operands::kFloat32});
      layers.push_back({shape[0], shape[1], shape[2], 2, Operands::kBfloat16});
      if (shape[2] > 8) layers.push_back({shape[0], shape[1], shape[2], 4, Operands::kBfloat16});
    }
  }
  Pool pool(threads);
  for (const Layer& layer : layers) measure(layer, isa, threads, repeat, pool);
  return testing::report();
}
