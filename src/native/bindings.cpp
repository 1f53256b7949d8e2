#include <executorch/runtime/backend/interface.h>
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>
#include <unistd.h>

#include <exception>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "errors.h"
#include "platform.h"
#include "program.h"
#include "threads.h"
#include "worker.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace aioembed {
namespace {

using ArrayIn = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using ArrayOut = nb::ndarray<nb::numpy>;
using TensorTuple = std::tuple<std::vector<std::int32_t>, std::string, bool>;
using MethodTuple = std::tuple<std::string, std::vector<TensorTuple>, std::vector<TensorTuple>>;

// What Python holds. Freeing hundreds of megabytes takes a while: a forgotten program must not hold
// the GIL for it. A forked child has the program but not its thread, which may have held any lock
// when it was left behind: the child never touches the program again, not even to free it.
class BoundProgram {
 public:
  BoundProgram(std::string path, LoadOptions options)
      : process_(getpid()),
        program_(std::make_unique<Program>(std::move(path), std::move(options))) {}

  ~BoundProgram() {
    if (is_forked()) {
      static_cast<void>(program_.release());
      return;
    }
    const nb::gil_scoped_release unlocked;
    program_.reset();
  }

  void close() {
    if (!is_forked()) {
      const nb::gil_scoped_release unlocked;
      program_->close();
    }
  }

  Program& get() const { return *program_; }

 private:
  bool is_forked() const { return getpid() != process_; }

  pid_t process_;
  std::unique_ptr<Program> program_;
};

struct DType {
  ScalarType type;
  const char* name;
  nb::dlpack::dtype dlpack;
};

const DType kDTypes[] = {
    {ScalarType::Bool, "bool", nb::dtype<bool>()},
    {ScalarType::Byte, "uint8", nb::dtype<std::uint8_t>()},
    {ScalarType::Char, "int8", nb::dtype<std::int8_t>()},
    {ScalarType::Short, "int16", nb::dtype<std::int16_t>()},
    {ScalarType::Int, "int32", nb::dtype<std::int32_t>()},
    {ScalarType::Long, "int64", nb::dtype<std::int64_t>()},
    {ScalarType::Half, "float16",
     {static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float), 16, 1}},
    {ScalarType::Float, "float32", nb::dtype<float>()},
    {ScalarType::Double, "float64", nb::dtype<double>()},
};

const DType& dtype_of(ScalarType type) {
  for (const DType& dtype : kDTypes) {
    if (dtype.type == type) {
      return dtype;
    }
  }
  throw nb::type_error("a tensor has a dtype that numpy does not know");
}

const DType& dtype_of(nb::dlpack::dtype dlpack) {
  for (const DType& dtype : kDTypes) {
    if (dtype.dlpack == dlpack) {
      return dtype;
    }
  }
  throw nb::type_error("an array has a dtype that no program takes");
}

ArrayOut to_numpy(OutputArray output) {
  auto* const data = output.data.release();
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<std::uint8_t*>(p); });
  return ArrayOut(
      data, output.shape.size(), output.shape.data(), owner, nullptr,
      dtype_of(output.dtype).dlpack);
}

InputArray borrow(const ArrayIn& array) {
  InputArray input{array.data(), {}, dtype_of(array.dtype()).type};
  for (std::size_t axis = 0; axis < array.ndim(); ++axis) {
    input.shape.push_back(static_cast<std::int32_t>(array.shape(axis)));
  }
  return input;
}

std::vector<TensorTuple> to_tuples(const std::vector<TensorInfo>& infos) {
  std::vector<TensorTuple> tuples;
  for (const TensorInfo& info : infos) {
    tuples.emplace_back(info.shape, dtype_of(info.dtype).name, info.dynamic);
  }
  return tuples;
}

std::vector<MethodTuple> describe(const Program& program) {
  std::vector<MethodTuple> methods;
  for (const MethodInfo& method : program.methods()) {
    methods.emplace_back(method.name, to_tuples(method.inputs), to_tuples(method.outputs));
  }
  return methods;
}

nb::object to_python(ConstantValue&& value) {
  if (auto* const array = std::get_if<OutputArray>(&value)) {
    return nb::cast(to_numpy(std::move(*array)));
  }
  if (auto* const flag = std::get_if<bool>(&value)) {
    return nb::bool_(*flag);
  }
  if (auto* const number = std::get_if<std::int64_t>(&value)) {
    return nb::int_(*number);
  }
  if (auto* const real = std::get_if<double>(&value)) {
    return nb::float_(*real);
  }
  const auto& text = std::get<std::string>(value);
  PyObject* const decoded =
      PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace");
  if (decoded == nullptr) {
    throw nb::python_error();
  }
  return nb::steal(decoded);
}

nb::dict take_constants(Program& program) {
  nb::dict constants;
  for (Constant& constant : program.take_constants()) {
    nb::list values;
    for (ConstantValue& value : constant.values) {
      values.append(to_python(std::move(value)));
    }
    constants[constant.name.c_str()] = values;
  }
  return constants;
}

std::vector<InputArray> borrow_all(const std::vector<ArrayIn>& arrays) {
  std::vector<InputArray> inputs;
  for (const ArrayIn& array : arrays) {
    inputs.push_back(borrow(array));
  }
  return inputs;
}

std::vector<ArrayOut> to_numpy_all(std::vector<OutputArray> outputs) {
  std::vector<ArrayOut> results;
  for (OutputArray& output : outputs) {
    results.push_back(to_numpy(std::move(output)));
  }
  return results;
}

std::vector<ArrayOut> run(
    BoundProgram& program, const std::string& method, const std::vector<ArrayIn>& arrays) {
  const std::vector<InputArray> inputs = borrow_all(arrays);
  std::vector<OutputArray> outputs;
  {
    const nb::gil_scoped_release unlocked;
    outputs = program.get().run(method, inputs);
  }
  return to_numpy_all(std::move(outputs));
}

void start(BoundProgram& program, std::string method, std::vector<ArrayIn> arrays) {
  auto run = std::make_unique<Run>();
  run->method = std::move(method);
  run->inputs = borrow_all(arrays);
  run->owner = std::shared_ptr<void>(
      new std::vector<ArrayIn>(std::move(arrays)), [](void* owned) {
        const nb::gil_scoped_acquire locked;
        delete static_cast<std::vector<ArrayIn>*>(owned);
      });
  program.get().start(std::move(run));
}

std::vector<ArrayOut> collect(BoundProgram& program) {
  std::unique_ptr<Run> run;
  {
    const nb::gil_scoped_release unlocked;
    run = program.get().collect();
  }
  if (run->error) {
    std::rethrow_exception(run->error);
  }
  return to_numpy_all(std::move(run->outputs));
}

void bind_errors(nb::module_& m) {
  static PyObject* const failure =
      nb::exception<RuntimeFailure>(m, "RuntimeFailure").release().ptr();
  nb::exception<ProgramClosed>(m, "ProgramClosed");
  nb::exception<NothingStarted>(m, "NothingStarted");
  nb::register_exception_translator(
      [](const std::exception_ptr& pending, void*) {
        try {
          std::rethrow_exception(pending);
        } catch (const RuntimeFailure& error) {
          const nb::tuple args =
              nb::make_tuple(
                  error.code(), error.name(), error.what(), error.log(), error.is_lost());
          PyErr_SetObject(failure, args.ptr());
        }
      },
      nullptr);
}

void bind_log(nb::module_& m) {
  m.def(
      "drain_log",
      [] {
        std::vector<std::pair<std::string, std::string>> lines;
        for (LogLine& line : drain_log()) {
          lines.emplace_back(std::string(1, line.level), std::move(line.message));
        }
        return lines;
      },
      "Take the lines logged since the last call, as (level letter, message).");
}

void bind_backends(nb::module_& m) {
  m.attr("EXECUTORCH_VERSION") = AIOEMBED_EXECUTORCH_VERSION;
  m.def(
      "backends",
      [] {
        std::vector<std::string> names;
        for (std::size_t i = 0; i < executorch::runtime::get_num_registered_backends(); ++i) {
          const auto name = executorch::runtime::get_backend_name(i);
          if (name.ok()) {
            names.emplace_back(*name);
          }
        }
        return names;
      },
      "Return the names of the backends that are linked in.");
}

void bind_threads(nb::module_& m) {
  m.def("pool_thread_count", &pool_thread_count, "Return how many threads the pool has.");
  m.def(
      "resize_pool", &resize_pool, "threads"_a, nb::kw_only(), "niceness"_a,
      nb::call_guard<nb::gil_scoped_release>(),
      "Give the pool that many threads and return whether it has them; never after a load.");
  m.def(
      "pause_workers", &pause_workers, nb::call_guard<nb::gil_scoped_release>(),
      "Wait for what the programs' threads do, and let nothing begin; before a fork.");
  m.def(
      "resume_workers", &resume_workers, nb::kw_only(), "in_child"_a,
      "Let it begin again; after a fork, in both processes.");
}

void bind_program(nb::module_& m) {
  nb::class_<BoundProgram>(m, "Program", "A loaded program.")
      .def(
          "__init__",
          [](BoundProgram* self, const nb::bytes& path, bool single_thread,
             const nb::bytes& packed_weights, int niceness) {
            std::string native_path(path.c_str(), path.size());
            LoadOptions options{
                single_thread, {packed_weights.c_str(), packed_weights.size()}, niceness};
            const nb::gil_scoped_release unlocked;
            new (self) BoundProgram(std::move(native_path), std::move(options));
          },
          "path"_a, nb::kw_only(), "single_thread"_a, "packed_weights"_a, "niceness"_a)
      .def(
          "describe", [](const BoundProgram& program) { return describe(program.get()); },
          "Return (name, inputs, outputs) of each method; tensors are (shape, dtype, dynamic).")
      .def(
          "take_constants", [](BoundProgram& program) { return take_constants(program.get()); },
          nb::sig("def take_constants(self) -> dict[str, list[bool | int | float | str | "
                  "numpy.typing.NDArray[typing.Any]]]"),
          "Return what each constant method holds; once.")
      .def(
          "run", &run, "method"_a, "inputs"_a,
          nb::sig("def run(self, method: str, inputs: collections.abc.Sequence["
                  "numpy.typing.NDArray[typing.Any]]) -> list[numpy.typing.NDArray[typing.Any]]"),
          "Run a method and wait for its result.")
      .def(
          "start", &start, "method"_a, "inputs"_a,
          nb::sig("def start(self, method: str, inputs: collections.abc.Sequence["
                  "numpy.typing.NDArray[typing.Any]]) -> None"),
          "Queue a run; its result takes the place of one that was not collected.")
      .def(
          "completion_fd",
          [](const BoundProgram& program) { return program.get().completion_fd(); },
          "Return a descriptor that is readable when the run that was started last has ended.")
      .def(
          "collect", &collect,
          nb::sig("def collect(self) -> list[numpy.typing.NDArray[typing.Any]]"),
          "Return the result of the run that was started last; waits until it has ended.")
      .def(
          "close", &BoundProgram::close,
          "Free the program, after the run in progress; does nothing in a forked child.");
}

}  // namespace
}  // namespace aioembed

NB_MODULE(_native, m) {
  aioembed::install_platform();
  aioembed::bind_errors(m);
  aioembed::bind_log(m);
  aioembed::bind_backends(m);
  aioembed::bind_threads(m);
  aioembed::bind_program(m);
}
