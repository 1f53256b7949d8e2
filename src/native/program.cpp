#include "program.h"

#include <executorch/extension/threadpool/threadpool_guard.h>
#include <executorch/runtime/core/exec_aten/util/scalar_type_util.h>
#include <sys/mman.h>
#include <unistd.h>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>
#include <cstring>
#include <limits>
#include <new>
#include <numeric>
#include <optional>
#include <stdexcept>

// `num_instructions`, `method` and `get_input` are marked so, and nothing else tells what they do.
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

namespace aioembed {

using executorch::extension::Module;
using executorch::extension::threadpool::NoThreadPoolGuard;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::HierarchicalAllocator;
using executorch::runtime::Method;
using executorch::runtime::MethodMeta;
using executorch::runtime::Result;
using executorch::runtime::Span;
using executorch::runtime::Tag;
using executorch::runtime::TensorShapeDynamism;
using executorch::runtime::etensor::Tensor;
using executorch::runtime::etensor::TensorImpl;

namespace {

// XNNPACK may read a little past the end of an input.
constexpr std::size_t kReadBeyondEnd = 128;

[[noreturn]] void fail(Error error, const std::string& doing, const ErrorLines& log) {
  throw RuntimeFailure(error, doing, log.lines());
}

void check(Error error, const std::string& doing, const ErrorLines& log) {
  if (error != Error::Ok) {
    fail(error, doing, log);
  }
}

template <typename T>
T unwrap(Result<T> result, const std::string& doing, const ErrorLines& log) {
  check(result.error(), doing, log);
  return std::move(*result);
}

bool is_printable(const std::string& text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c >= ' ' && c <= '~'; });
}

bool is_supported(ScalarType type) {
  switch (type) {
    case ScalarType::Bool:
    case ScalarType::Byte:
    case ScalarType::Char:
    case ScalarType::Short:
    case ScalarType::Int:
    case ScalarType::Long:
    case ScalarType::Half:
    case ScalarType::Float:
    case ScalarType::Double:
      return true;
    default:
      return false;
  }
}

template <typename DimOrder>
bool is_order(const DimOrder& order) {
  std::vector<bool> seen(order.size());
  for (const auto axis : order) {
    if (axis >= order.size() || seen[axis]) {
      return false;
    }
    seen[axis] = true;
  }
  return true;
}

// The sizes in the order in which the axes lie in memory: those of channels-last pictures are
// (n, height, width, 3), although the program calls them (n, 3, height, width).
template <typename Size, typename Sizes, typename DimOrder>
std::vector<Size> shape_in_memory(const Sizes& sizes, const DimOrder& order) {
  std::vector<Size> shape;
  for (const auto axis : order) {
    shape.push_back(static_cast<Size>(sizes[axis]));
  }
  return shape;
}

OutputArray copy_tensor(const Tensor& tensor) {
  OutputArray copy{nullptr, {}, tensor.scalar_type()};
  copy.shape = shape_in_memory<std::size_t>(tensor.sizes(), tensor.dim_order());
  copy.data.reset(new std::uint8_t[std::max<std::size_t>(tensor.nbytes(), 1)]);
  if (tensor.nbytes() != 0) {
    std::memcpy(copy.data.get(), tensor.const_data_ptr(), tensor.nbytes());
  }
  return copy;
}

std::optional<ConstantValue> copy_value(const EValue& value) {
  if (value.isBool()) {
    return value.toBool();
  }
  if (value.isInt()) {
    return value.toInt();
  }
  if (value.isDouble()) {
    return value.toDouble();
  }
  if (value.isString()) {
    return std::string(value.toString());
  }
  if (value.isTensor() && is_supported(value.toTensor().scalar_type()) &&
      is_order(value.toTensor().dim_order()) &&
      value.toTensor().const_data_ptr() != nullptr) {
    return copy_tensor(value.toTensor());
  }
  return std::nullopt;
}

std::uint64_t physical_memory() {
  const long pages = sysconf(_SC_PHYS_PAGES);
  const long page = sysconf(_SC_PAGESIZE);
  if (pages <= 0 || page <= 0) {
    return std::numeric_limits<std::uint64_t>::max();
  }
  return static_cast<std::uint64_t>(pages) * static_cast<std::uint64_t>(page);
}

}  // namespace

// Keeps alive what an input tensor is made of while a run uses it.
struct Program::Staged {
  Staged(const InputArray& input, const std::vector<std::uint8_t>& dim_order)
      : sizes(input.shape.size()), order(dim_order), strides(input.shape.size()) {
    std::int32_t stride = 1;
    for (std::size_t place = order.size(); place-- > 0;) {
      sizes[order[place]] = input.shape[place];
      strides[order[place]] = stride;
      stride *= input.shape[place];
    }
    impl.emplace(
        input.dtype,
        static_cast<ssize_t>(sizes.size()),
        sizes.data(),
        nullptr,
        order.data(),
        strides.data());
    padded.reset(new std::uint8_t[impl->nbytes() + kReadBeyondEnd]);
    std::memcpy(padded.get(), input.data, impl->nbytes());
    impl->set_data(padded.get());
  }

  std::vector<std::int32_t> sizes;
  std::vector<std::uint8_t> order;
  std::vector<std::int32_t> strides;
  std::unique_ptr<std::uint8_t[]> padded;
  std::optional<TensorImpl> impl;
};

// The memory of a method's tensors. It is sized for the largest batch; mapped rather than filled
// with zeros, it takes up no more than the batches that are run.
struct Program::Planned {
  Planned() = default;
  Planned(const Planned&) = delete;
  Planned& operator=(const Planned&) = delete;
  ~Planned() {
    for (const Span<std::uint8_t>& buffer : buffers) {
      munmap(buffer.data(), buffer.size());
    }
  }

  bool add(std::size_t size) {
    const std::size_t mapped = std::max<std::size_t>(size, 1);
    void* const data =
        mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
      return false;
    }
    buffers.push_back({static_cast<std::uint8_t*>(data), mapped});
    return true;
  }

  std::vector<Span<std::uint8_t>> buffers;
  std::optional<HierarchicalAllocator> allocator;
};

// Runs `work`, on the pool or without it; what the C++ library throws (as for absurd sizes) becomes
// a RuntimeFailure.
template <typename Work>
auto Program::translated(const std::string& doing, const ErrorLines& log, Work work) {
  std::optional<NoThreadPoolGuard> guard;
  if (load_options_.single_thread) {
    guard.emplace();
  }
  try {
    return work();
  } catch (const std::bad_alloc&) {
    fail(Error::MemoryAllocationFailed, doing, log);
  } catch (const std::length_error&) {
    fail(Error::MemoryAllocationFailed, doing, log);
  } catch (const FailedCheck&) {
    static_cast<void>(module_.release());  // in no state to be destroyed
    lost_.emplace(Error::InvalidProgram, doing, log.lines(), is_loaded_);
    throw *lost_;
  }
}

Program::Program(std::string path, LoadOptions options)
    : path_(std::move(path)), load_options_(std::move(options)), worker_(load_options_.niceness) {
  worker_.run([this] { load(); });
}

Program::~Program() { close(); }

void Program::load() {
  const ErrorLines log;
  const std::string doing = "loading the program";
  translated(doing, log, [&] {
    // One workspace per model: with a global one (2, the default) two models block each other, and
    // with one per delegate (0) a program of many delegates takes tens of megabytes more.
    check(backend_options_.set_option("workspace_sharing_mode", 1), doing, log);
    if (!load_options_.packed_weights.empty()) {
      check(backend_options_.set_option("weight_cache_enabled", true), doing, log);
      check(
          backend_options_.set_option("packed_cache_path", load_options_.packed_weights.c_str()),
          doing,
          log);
    }
    check(
        backend_options_map_.set_options("XnnpackBackend", backend_options_.view()), doing, log);
    module_ = std::make_unique<Module>(path_, Module::LoadMode::Mmap);
    check(
        module_->load(
            backend_options_map_,
            executorch::runtime::Program::Verification::InternalConsistency),
        doing,
        log);
    const auto names = unwrap(module_->method_names(), doing, log);
    std::vector<std::string> sorted(names.begin(), names.end());
    std::sort(sorted.begin(), sorted.end());
    for (const auto& name : sorted) {
      if (!is_printable(name)) {
        fail(Error::InvalidProgram, "reading the methods' names", log);
      }
      load_one(name);
    }
    is_loaded_ = true;
  });
}

void Program::load_one(const std::string& name) {
  const ErrorLines log;
  const std::string doing = "loading the method '" + name + "'";
  const MethodMeta meta = unwrap(module_->method_meta(name), doing, log);
  check(module_->load_method(name, plan_memory(meta)), doing, log);
  if (meta.num_inputs() == 0 && meta.num_instructions() == 0) {
    Constant constant{name, {}};
    for (const EValue& value : unwrap(module_->get_outputs(name), doing, log)) {
      auto copy = copy_value(value);
      if (!copy) {
        fail(Error::NotSupported, "reading the constant method '" + name + "'", log);
      }
      constant.values.push_back(std::move(*copy));
    }
    module_->unload_method(name);
    planned_.pop_back();
    constants_.push_back(std::move(constant));
    return;
  }
  const Method* const method = unwrap(module_->method(name), doing, log);
  methods_.push_back({name, describe_inputs(meta, *method), describe_outputs(meta, *method)});
}

// A damaged size would take the machine's memory.
HierarchicalAllocator* Program::plan_memory(const MethodMeta& meta) {
  const ErrorLines log;
  const std::string doing = "planning the memory of the method '" + std::string(meta.name()) + "'";
  auto planned = std::make_unique<Planned>();
  std::uint64_t left = physical_memory();
  for (std::size_t i = 0; i < meta.num_memory_planned_buffers(); ++i) {
    const std::int64_t size = unwrap(meta.memory_planned_buffer_size(i), doing, log);
    if (size < 0 || static_cast<std::uint64_t>(size) > left ||
        !planned->add(static_cast<std::size_t>(size))) {
      fail(Error::MemoryAllocationFailed, doing, log);
    }
    left -= static_cast<std::uint64_t>(size);
  }
  planned->allocator.emplace(
      Span<Span<std::uint8_t>>(planned->buffers.data(), planned->buffers.size()));
  planned_.push_back(std::move(planned));
  return &*planned_.back()->allocator;
}

std::vector<TensorInfo> Program::describe_inputs(const MethodMeta& meta, const Method& method) {
  const ErrorLines log;
  std::vector<TensorInfo> infos;
  for (std::size_t i = 0; i < meta.num_inputs(); ++i) {
    const std::string doing = "describing input " + std::to_string(i) + " of the method '" +
        std::string(meta.name()) + "'";
    if (unwrap(meta.input_tag(i), doing, log) != Tag::Tensor) {
      fail(Error::NotSupported, doing + ", which is not a tensor", log);
    }
    const auto tensor = unwrap(meta.input_tensor_meta(i), doing, log);
    const EValue& value = method.get_input(i);
    if (!is_supported(tensor.scalar_type()) || !is_order(tensor.dim_order()) ||
        !value.isTensor()) {
      fail(Error::NotSupported, doing + ", whose dtype or memory layout is unknown here", log);
    }
    infos.push_back(
        {shape_in_memory<std::int32_t>(tensor.sizes(), tensor.dim_order()),
         tensor.scalar_type(),
         value.toTensor().shape_dynamism() != TensorShapeDynamism::STATIC,
         {tensor.dim_order().begin(), tensor.dim_order().end()}});
  }
  return infos;
}

std::vector<TensorInfo> Program::describe_outputs(const MethodMeta& meta, const Method& method) {
  const ErrorLines log;
  std::vector<TensorInfo> infos;
  for (std::size_t i = 0; i < meta.num_outputs(); ++i) {
    const std::string doing = "describing output " + std::to_string(i) + " of the method '" +
        std::string(meta.name()) + "'";
    const EValue& value = method.get_output(i);
    if (!value.isTensor()) {
      fail(Error::NotSupported, doing + ", which is not a tensor", log);
    }
    const Tensor& tensor = value.toTensor();
    if (!is_supported(tensor.scalar_type()) || !is_order(tensor.dim_order())) {
      fail(Error::NotSupported, doing + ", whose dtype or memory layout is unknown here", log);
    }
    if (tensor.const_data_ptr() == nullptr && tensor.nbytes() != 0) {
      fail(Error::NotSupported, doing + ", whose memory the program has not planned", log);
    }
    infos.push_back(
        {shape_in_memory<std::int32_t>(tensor.sizes(), tensor.dim_order()),
         tensor.scalar_type(),
         tensor.shape_dynamism() != TensorShapeDynamism::STATIC,
         {tensor.dim_order().begin(), tensor.dim_order().end()}});
  }
  return infos;
}

std::vector<OutputArray> Program::run(
    const std::string& method, const std::vector<InputArray>& inputs) {
  std::vector<OutputArray> outputs;
  if (!worker_.run([&] { outputs = compute(method, inputs); })) {
    throw ProgramClosed();
  }
  return outputs;
}

void Program::start(std::unique_ptr<Run> run) {
  std::vector<std::unique_ptr<Run>> forgotten;  // freed without the lock: Python may run then
  const std::lock_guard<std::mutex> lock(mutex_);
  Run* const started = run.get();
  if (!worker_.post([this, started] { perform(*started); })) {
    throw ProgramClosed();
  }
  runs_.push_back(std::move(run));
  awaited_ = started;
  completion_.clear();
  forgotten = take_forgotten();
}

std::unique_ptr<Run> Program::collect() {
  std::vector<std::unique_ptr<Run>> forgotten;
  std::unique_lock<std::mutex> lock(mutex_);
  run_ended_.wait(lock, [this] { return awaited_ == nullptr || awaited_->ended; });
  if (awaited_ == nullptr) {
    throw NothingStarted();
  }
  Run* const collected = std::exchange(awaited_, nullptr);
  completion_.clear();
  forgotten = take_forgotten();
  const auto place = std::find_if(forgotten.begin(), forgotten.end(), [&](const auto& run) {
    return run.get() == collected;
  });
  return std::move(*place);
}

// On the worker's thread, which must not free a run.
void Program::perform(Run& run) {
  std::unique_lock<std::mutex> lock(mutex_);
  const bool is_awaited = &run == awaited_;
  lock.unlock();
  try {
    if (is_awaited) {
      run.outputs = compute(run.method, run.inputs);
    }
  } catch (...) {
    run.error = std::current_exception();
  }
  lock.lock();
  run.ended = true;
  if (&run == awaited_) {
    completion_.set();
    run_ended_.notify_all();
  }
}

// Ended runs whose result nobody waits for.
std::vector<std::unique_ptr<Run>> Program::take_forgotten() {
  const auto kept = std::stable_partition(runs_.begin(), runs_.end(), [this](const auto& run) {
    return !run->ended || run.get() == awaited_;
  });
  std::vector<std::unique_ptr<Run>> forgotten(
      std::make_move_iterator(kept), std::make_move_iterator(runs_.end()));
  runs_.erase(kept, runs_.end());
  return forgotten;
}

// Of the axes of an input in memory. The runtime refuses an input or a method that there is not.
std::vector<std::uint8_t> Program::order_of(
    const std::string& method, std::size_t input, std::size_t axes) const {
  for (const MethodInfo& info : methods_) {
    if (info.name == method && input < info.inputs.size() &&
        info.inputs[input].order.size() == axes) {
      return info.inputs[input].order;
    }
  }
  std::vector<std::uint8_t> row_major(axes);
  std::iota(row_major.begin(), row_major.end(), std::uint8_t{0});
  return row_major;
}

std::vector<OutputArray> Program::compute(
    const std::string& method, const std::vector<InputArray>& inputs) {
  const ErrorLines log;
  const std::string doing = "running the method '" + method + "'";
  if (lost_) {
    throw *lost_;
  }
  if (closing_) {
    throw ProgramClosed();
  }
  return translated(doing, log, [&] {
    std::vector<std::unique_ptr<Staged>> staged;
    std::vector<EValue> values;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const auto order = order_of(method, i, inputs[i].shape.size());
      staged.push_back(std::make_unique<Staged>(inputs[i], order));
      values.emplace_back(Tensor(&*staged.back()->impl));
    }
    std::vector<OutputArray> outputs;
    for (const EValue& value : unwrap(module_->execute(method, values), doing, log)) {
      if (!value.isTensor()) {
        fail(Error::NotSupported, doing + ": an output is not a tensor", log);
      }
      outputs.push_back(copy_tensor(value.toTensor()));
    }
    return outputs;
  });
}

void Program::close() {
  closing_ = true;
  worker_.post([this] { free_memory(); });
  worker_.finish();
}

void Program::free_memory() {
  module_.reset();
  planned_.clear();
#ifdef __GLIBC__
  malloc_trim(0);  // glibc would keep the workspace for later
#endif
}

}  // namespace aioembed
