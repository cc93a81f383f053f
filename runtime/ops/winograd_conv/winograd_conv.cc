// Which pieces of blocks.h are done when, and by how many.
//
// Where there are blocks enough, a task is a block: its thread transforms it for itself and goes through all output channels, and nobody
// waits for anybody. Else a few blocks at a time are transformed by all threads, and then multiplied by all: a task is a block times some
// panels. The blocks of one time are as many as keep V in the cache that cores share.
#include "winograd_conv.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "blocks.h"

namespace handheld {
namespace {

constexpr std::int64_t kSharedCacheBytes = 16 << 20;  // for V
constexpr std::int64_t kOwnCacheBytes = 480 << 10;    // for M: half of a second-level cache of 1 MB, the other half is for U and V
constexpr std::int64_t kBlocksPerThread = 8;          // from which on the last block to end makes little difference
constexpr std::int64_t kTasksPerThread = 8;           // a thread that is slowed down leaves tasks to the others
constexpr std::int64_t kAlign = 64;

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

const WinogradKernel& float16_kernel_for(Isa isa) {
  switch (isa) {
#if defined(HANDHELD_X86)
    case Isa::kAvx2:
    case Isa::kAvx512:
    case Isa::kAvx512Bf16: return winograd_conv_float16_avx2;
#elif defined(HANDHELD_ARM64)
    case Isa::kNeon: return winograd_conv_float16_neon;
    case Isa::kNeonFp16:
    case Isa::kNeonBf16: return winograd_conv_neonfp16;
#endif
    default: return winograd_conv_float16_portable;
  }
}

const WinogradKernel& kernel_for(const WinogradConv& task, Isa isa) {
  if (task.operands == Operands::kFloat16) return float16_kernel_for(isa);
  switch (isa) {
#if defined(HANDHELD_X86)
    case Isa::kAvx2: return winograd_conv_avx2;
    case Isa::kAvx512: return winograd_conv_avx512;
    case Isa::kAvx512Bf16: return task.operands == Operands::kBfloat16 ? winograd_conv_avx512bf16 : winograd_conv_avx512;
#elif defined(HANDHELD_ARM64)
    case Isa::kNeon:
    case Isa::kNeonFp16: return winograd_conv_neon;
    case Isa::kNeonBf16: return task.operands == Operands::kBfloat16 ? winograd_conv_neonbf16 : winograd_conv_neon;
#endif
    default: return winograd_conv_portable;
  }
}

struct Schedule {
  std::int64_t depth;
  std::int64_t panels;        // of all output channels
  std::int64_t tiles;
  std::int64_t blocks;
  bool own;                   // a task is a block
  std::int64_t blocks_at_once;   // whose V there is, where tasks share it
  std::int64_t panels_at_once;   // whose M there is
  std::int64_t v_bytes;       // of a block
  std::int64_t m_bytes;       // of a thread

  Schedule(const WinogradConv& task, bool pairs, int threads) {
    const std::int64_t planes = (task.tile + 2) * (task.tile + 2);
    depth = pairs ? divide_up(task.channels_in, 2) : task.channels_in;
    panels = divide_up(task.channels_out, kPanelChannels);
    tiles = task.batch * divide_up(task.height, task.tile) * divide_up(task.width, task.tile);
    blocks = divide_up(divide_up(tiles, kUnitLanes), kBlockLanes / kUnitLanes);
    const std::int64_t lanes = block(0).lanes, float_bytes = sizeof(float);
    v_bytes = aligned(planes * (depth * lanes + kPlaneGap) * float_bytes);
    const std::int64_t panel_bytes = planes * kPanelChannels * lanes * float_bytes;
    panels_at_once = std::clamp(kOwnCacheBytes / panel_bytes, std::int64_t{1}, std::min<std::int64_t>(panels, 8));
    own = blocks >= kBlocksPerThread * threads;
    blocks_at_once = own ? 1 : std::clamp(kSharedCacheBytes / v_bytes, std::int64_t{1}, blocks);
    if (!own) {
      blocks_at_once = divide_up(blocks, divide_up(blocks, blocks_at_once));
      const std::int64_t wanted = divide_up(kTasksPerThread * threads, blocks_at_once);
      panels_at_once = std::clamp(panels / wanted, std::min(panels_at_once, std::int64_t{2}), panels_at_once);
    }
    m_bytes = aligned((planes * (panels_at_once * kPanelChannels * lanes + kPlaneGap)) * float_bytes);
  }

  static std::int64_t aligned(std::int64_t bytes) { return divide_up(bytes, kAlign) * kAlign; }

  // Blocks differ by one unit at most.
  TileBlock block(std::int64_t index) const {
    const std::int64_t units = divide_up(tiles, kUnitLanes), small = units / blocks, large = units % blocks;
    const std::int64_t first = (index * small + std::min(index, large)) * kUnitLanes;
    const std::int64_t lanes = (small + (index < large ? 1 : 0)) * kUnitLanes;
    return {first, static_cast<int>(std::min(lanes, tiles - first)), static_cast<int>(lanes)};
  }
};

// Pieces of memory, one for each thread that is at work.
class Slots {
 public:
  Slots(char* memory, std::int64_t bytes, int count) : memory_(memory), bytes_(bytes), taken_(static_cast<std::size_t>(count)) {}

  template <typename Function>
  void with_one(const Function& function) {
    for (std::size_t i = 0;; i = (i + 1) % taken_.size()) {
      if (!taken_[i].exchange(true, std::memory_order_acquire)) {
        function(memory_ + static_cast<std::int64_t>(i) * bytes_);
        taken_[i].store(false, std::memory_order_release);
        return;
      }
      if (i + 1 == taken_.size()) std::this_thread::yield();
    }
  }

 private:
  char* memory_;
  std::int64_t bytes_;
  std::vector<std::atomic<bool>> taken_;
};

}  // namespace

std::size_t winograd_conv_scratch(const WinogradConv& task, Isa isa, int threads) {
  const Schedule schedule(task, kernel_for(task, isa).pairs, threads);
  const std::int64_t shared = schedule.own ? 0 : schedule.blocks_at_once * schedule.v_bytes;
  const std::int64_t per_thread = schedule.m_bytes + (schedule.own ? schedule.v_bytes : 0);
  return static_cast<std::size_t>(shared + threads * per_thread);
}

void winograd_conv(const WinogradConv& task, Isa isa, int threads, void* scratch, const Parallel& parallel) {
  const WinogradKernel& kernel = kernel_for(task, isa);
  const Schedule schedule(task, kernel.pairs, threads);
  char* const memory = static_cast<char*>(scratch);
  if (schedule.own) {
    Slots slots(memory, schedule.v_bytes + schedule.m_bytes, threads);
    parallel(schedule.blocks, [&](std::int64_t index) {
      slots.with_one([&](char* slot) {
        float* v = reinterpret_cast<float*>(slot);
        float* m = reinterpret_cast<float*>(slot + schedule.v_bytes);
        const TileBlock block = schedule.block(index);
        kernel.transform(task, block, 0, schedule.depth, v);
        for (std::int64_t panel = 0; panel < schedule.panels; panel += schedule.panels_at_once) {
          kernel.multiply(task, block, panel, std::min(panel + schedule.panels_at_once, schedule.panels), v, m);
        }
      });
    });
    return;
  }
  Slots slots(memory + schedule.blocks_at_once * schedule.v_bytes, schedule.m_bytes, threads);
  const auto v_of = [&](std::int64_t index) { return reinterpret_cast<float*>(memory + index * schedule.v_bytes); };
  for (std::int64_t first = 0; first < schedule.blocks; first += schedule.blocks_at_once) {
    const std::int64_t blocks = std::min(schedule.blocks_at_once, schedule.blocks - first);
    const std::int64_t parts = std::clamp(divide_up(kTasksPerThread * threads, blocks), std::int64_t{1}, divide_up(schedule.depth, 4));
    parallel(blocks * parts, [&](std::int64_t index) {
      const std::int64_t block = index / parts, part = index % parts;
      const std::int64_t begin = schedule.depth * part / parts, end = schedule.depth * (part + 1) / parts;
      kernel.transform(task, schedule.block(first + block), begin, end, v_of(block));
    });
    const std::int64_t groups = divide_up(schedule.panels, schedule.panels_at_once);
    parallel(groups * blocks, [&](std::int64_t index) {
      const std::int64_t group = index / blocks, block = index % blocks;  // the blocks of one U follow each other
      const std::int64_t begin = schedule.panels * group / groups, end = schedule.panels * (group + 1) / groups;
      slots.with_one([&](char* slot) {
        kernel.multiply(task, schedule.block(first + block), begin, end, v_of(block), reinterpret_cast<float*>(slot));
      });
    });
  }
}

}  // namespace handheld
