#include "tensorrt/plugin.h"

#include <array>
#include <exception>
#include <new>

namespace glimt::tensorrt {

using manifest::DType;
using manifest::Kernel;

namespace {

bool is(trt::DataType type, DType dtype) {
    switch (dtype) {
        case DType::fp32:
            return type == trt::DataType::kFLOAT;
        case DType::fp16:
            return type == trt::DataType::kHALF;
        default:
            return type == trt::DataType::kBF16;
    }
}

trt::DataType type_of(DType dtype) {
    return dtype == DType::fp32   ? trt::DataType::kFLOAT
           : dtype == DType::fp16 ? trt::DataType::kHALF
                                  : trt::DataType::kBF16;
}

std::string text_of(const trt::Dims& dims) {
    std::string text = "[";
    for (int32_t i = 0; i < dims.nbDims; ++i)
        text += (i > 0 ? ", " : "") + std::to_string(dims.d[i]);
    return text + "]";
}

}  // namespace

// The tensors of one call, inputs and then outputs, as the manifest's rules ask for them.
struct KernelPlugin::Call {
    std::array<manifest::Shape, manifest::kMaxTensors> shapes;
    std::array<trt::DataType, manifest::kMaxTensors> types;
    size_t count = 0;

    // Descriptions live as long as the call. More tensors than a kernel can have are counted, and not looked at.
    void add(const trt::PluginTensorDesc& desc) {
        if (count < shapes.size()) {
            const auto axes = static_cast<size_t>(desc.dims.nbDims < 0 ? 0 : desc.dims.nbDims);
            shapes[count] = {desc.dims.d, axes};
            types[count] = desc.type;
        }
        ++count;
    }

    bool has_types_of(const Kernel& kernel) const {
        if (count != kernel.tensors.size()) return false;
        for (size_t i = 0; i < count; ++i)
            if (!is(types[i], kernel.tensors[i].dtype)) return false;
        return true;
    }
};

KernelPlugin::KernelPlugin(OpName op, float attribute, std::shared_ptr<const Folder> folder)
    : op_(op), attribute_(attribute), folder_(std::move(folder)), any_(nullptr) {
    for (const Kernel& kernel : folder_->manifest.kernels)
        if (kernel.op == op_.op && any_ == nullptr) any_ = &kernel;
    if (any_ == nullptr)
        throw manifest::Error(folder_->path + " has no kernel of " + op_.op +
                              "; write one with: python -m glimt_kernels.manifest --out DIR --op " + op_.op);
    if (any_->attributes.size() != 1 || any_->attributes[0] != op_.attribute)
        throw manifest::Error(folder_->path + ": " + op_.op + " has other attributes than " + op_.attribute);
    metadata_ = std::string("glimt ") + op_.op + " " + op_.attribute + "=" + std::to_string(attribute_) +
                " kernels=" + folder_->manifest.digest;
}

trt::IPluginCapability* KernelPlugin::getCapabilityInterface(trt::PluginCapabilityType type) noexcept {
    switch (type) {
        case trt::PluginCapabilityType::kCORE:
            return static_cast<trt::IPluginV3OneCore*>(this);
        case trt::PluginCapabilityType::kBUILD:
            return static_cast<trt::IPluginV3OneBuild*>(this);
        case trt::PluginCapabilityType::kRUNTIME:
            return static_cast<trt::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

trt::IPluginV3* KernelPlugin::clone() noexcept {
    try {
        return new KernelPlugin(*this);
    } catch (const std::exception& error) {
        failed(error.what());
        return nullptr;
    }
}

int32_t KernelPlugin::failed(const std::string& why) const noexcept {
    log_error(std::string("glimt plugin ") + op_.op + ": " + why);
    return 1;
}

// ---- while an engine is built ---------------------------------------------------------------------------------------

int32_t KernelPlugin::configurePlugin(trt::DynamicPluginTensorDesc const* in, int32_t inputs,
                                      trt::DynamicPluginTensorDesc const* out, int32_t outputs) noexcept {
    try {
        Call call;
        for (int32_t i = 0; i < inputs; ++i)
            call.add(in[i].desc);
        for (int32_t i = 0; i < outputs; ++i)
            call.add(out[i].desc);
        fitting(call, true);
        return 0;
    } catch (const std::exception& error) {
        return failed(error.what());
    }
}

int32_t KernelPlugin::getOutputDataTypes(trt::DataType* to, int32_t outputs, trt::DataType const* from,
                                         int32_t inputs) const noexcept {
    for (const Kernel& kernel : folder_->manifest.kernels) {
        const auto count = static_cast<size_t>(inputs);
        bool fits = kernel.op == op_.op && kernel.inputs == count &&
                    kernel.tensors.size() == count + static_cast<size_t>(outputs);
        for (size_t i = 0; fits && i < count; ++i)
            fits = is(from[i], kernel.tensors[i].dtype);
        if (!fits) continue;
        for (size_t i = 0; i < static_cast<size_t>(outputs); ++i)
            to[i] = type_of(kernel.tensors[count + i].dtype);
        return 0;
    }
    return failed("the manifest has no kernel for inputs of these types");
}

int32_t KernelPlugin::getOutputShapes(trt::DimsExprs const* in, int32_t inputs, trt::DimsExprs const*, int32_t,
                                      trt::DimsExprs* out, int32_t outputs, trt::IExprBuilder&) noexcept {
    if (static_cast<size_t>(inputs) != any_->inputs || outputs != getNbOutputs())
        return failed("the number of tensors is another");
    for (int32_t i = 0; i < outputs; ++i)
        out[i] = in[any_->shape_of_output(static_cast<size_t>(i))];
    return 0;
}

bool KernelPlugin::supportsFormatCombination(int32_t at, trt::DynamicPluginTensorDesc const* all, int32_t inputs,
                                             int32_t outputs) noexcept {
    if (all[at].desc.format != trt::TensorFormat::kLINEAR) return false;
    for (const Kernel& kernel : folder_->manifest.kernels) {
        bool fits = kernel.op == op_.op && kernel.inputs == static_cast<size_t>(inputs) &&
                    kernel.tensors.size() == static_cast<size_t>(inputs + outputs);
        for (int32_t i = 0; fits && i <= at; ++i)
            fits = is(all[i].desc.type, kernel.tensors[static_cast<size_t>(i)].dtype);
        if (fits) return true;
    }
    return false;
}

int32_t KernelPlugin::getNbOutputs() const noexcept {
    return static_cast<int32_t>(any_->tensors.size() - any_->inputs);
}

trt::PluginFieldCollection const* KernelPlugin::getFieldsToSerialize() noexcept {
    const std::string& digest = folder_->manifest.digest;
    fields_[0] = trt::PluginField{op_.attribute, &attribute_, trt::PluginFieldType::kFLOAT32, 1};
    fields_[1] = trt::PluginField{kKernelsField, digest.data(), trt::PluginFieldType::kCHAR,
                                  static_cast<int32_t>(digest.size())};
    collection_ = trt::PluginFieldCollection{2, fields_};
    return &collection_;
}

// ---- while it runs --------------------------------------------------------------------------------------------------

// The first kernel for these types and shapes. Throws manifest::Error that says why each one does not fit.
const Kernel& KernelPlugin::fitting(const Call& call, bool wildcards) const {
    std::string why;
    for (const Kernel& kernel : folder_->manifest.kernels) {
        if (kernel.op != op_.op) continue;
        manifest::Sizes sizes{};
        const char* wrong = call.has_types_of(kernel) ? nullptr : "the dtypes are others";
        if (wrong == nullptr) wrong = manifest::bind(kernel, call.shapes.data(), call.count, sizes, wildcards);
        if (wrong == nullptr && !wildcards) wrong = manifest::admits(kernel, sizes);
        if (wrong == nullptr) return kernel;
        why += (why.empty() ? "" : "; ") + kernel.case_ + ": " + wrong;
    }
    throw manifest::Error("no kernel takes such a call: " + why);
}

int32_t KernelPlugin::onShapeChange(trt::PluginTensorDesc const* in, int32_t inputs, trt::PluginTensorDesc const* out,
                                    int32_t outputs) noexcept {
    std::string shapes;
    try {
        Call call;
        for (int32_t i = 0; i < inputs + outputs; ++i) {
            const trt::PluginTensorDesc& desc = i < inputs ? in[i] : out[i - inputs];
            call.add(desc);
            shapes += " " + text_of(desc.dims);
        }
        prepare(fitting(call, false));
        return 0;
    } catch (const std::exception& error) {
        return failed(error.what() + std::string("; shapes") + shapes);
    }
}

// Have the kernel's cubin in the current context; what is there already stays.
void KernelPlugin::prepare(const Kernel& kernel) {
    if (kernel_ == &kernel && module_ != nullptr && is_here(*module_)) return;
    const manifest::Cubin& cubin = manifest::choose(kernel, current_capability());
    const std::string content = manifest::read_cubin(folder_->path, cubin);
    module_ = load(cubin.sha256, content, cubin.entry, cubin.shared_bytes);
    kernel_ = &kernel;
    cubin_ = &cubin;
}

int32_t KernelPlugin::enqueue(trt::PluginTensorDesc const* in, trt::PluginTensorDesc const* out,
                              void const* const* from, void* const* to, void*, cudaStream_t stream) noexcept {
    if (kernel_ == nullptr) return failed("it is run before it was told its shapes");
    std::array<manifest::Shape, manifest::kMaxTensors> shapes;
    std::array<uint64_t, manifest::kMaxTensors> addresses;
    const size_t inputs = kernel_->inputs, count = kernel_->tensors.size();
    for (size_t i = 0; i < count; ++i) {
        const trt::Dims& dims = i < inputs ? in[i].dims : out[i - inputs].dims;
        shapes[i] = {dims.d, static_cast<size_t>(dims.nbDims)};
        addresses[i] = reinterpret_cast<uint64_t>(i < inputs ? from[i] : to[i - inputs]);
    }
    const double attribute = attribute_;
    manifest::Launch launch;
    const char* wrong = manifest::launch(*kernel_, shapes.data(), count, addresses.data(), &attribute, launch);
    if (wrong == nullptr && launch.grid > 0) {
        std::array<void*, manifest::kMaxArguments> params;
        for (size_t i = 0; i < kernel_->arguments.size(); ++i)
            params[i] = launch.params.data() + launch.offsets[i];
        wrong = start(*module_, launch.grid, 32 * cubin_->warps, cubin_->shared_bytes, params.data(), stream);
    }
    return wrong == nullptr ? 0 : failed(wrong);
}

}  // namespace glimt::tensorrt
