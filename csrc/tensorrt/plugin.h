// One op of glimt_kernels inside a TensorRT engine: an IPluginV3 that knows no op, but the rules of a manifest.
//
// A node glimt::<op> of an exported graph becomes this plugin where a creator of its name is registered. While an
// engine is built it answers from the manifest which dtypes and shapes there are kernels for; on a shape change it
// chooses one, loads the cubin for the chip, and on enqueue launches it on TensorRT's stream: no workspace, no
// allocation, no copy. An engine holds the digest of the manifest it was built with, and runs with no other.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#ifdef GLIMT_TENSORRT_DECLARED
#include "tensorrt/declared.h"
#else
#include <NvInferRuntime.h>
#endif

#include "manifest/launch.h"
#include "tensorrt/driver.h"

namespace glimt::tensorrt {

namespace trt = nvinfer1;

constexpr const char* kVersion = "1";
constexpr const char* kNamespace = "";  // where TensorRT's ONNX parser looks, unless a node names another
constexpr const char* kKernelsField = "kernels";

// The folder of the manifest: what the variable GLIMT_KERNELS says, else glimt_kernels beside this library. Read once.
// Throws manifest::Error.
struct Folder {
    std::string path;
    manifest::Manifest manifest;
};
std::shared_ptr<const Folder> folder();

// To TensorRT's logger, or to stderr where there is none.
void log_error(const std::string& text) noexcept;
void set_logger_finder(trt::ILoggerFinder* finder) noexcept;

// An op and its one attribute, a float.
struct OpName {
    const char* op;
    const char* attribute;
};

class KernelPlugin final : public trt::IPluginV3,
                           public trt::IPluginV3OneCore,
                           public trt::IPluginV3OneBuild,
                           public trt::IPluginV3OneRuntime {
  public:
    // Throws manifest::Error where the manifest has no kernel of that op.
    KernelPlugin(OpName op, float attribute, std::shared_ptr<const Folder> folder);

    trt::IPluginCapability* getCapabilityInterface(trt::PluginCapabilityType type) noexcept override;
    trt::IPluginV3* clone() noexcept override;

    trt::AsciiChar const* getPluginName() const noexcept override { return op_.op; }
    trt::AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    trt::AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

    int32_t configurePlugin(trt::DynamicPluginTensorDesc const* in, int32_t inputs,
                            trt::DynamicPluginTensorDesc const* out, int32_t outputs) noexcept override;
    int32_t getOutputDataTypes(trt::DataType* to, int32_t outputs, trt::DataType const* from,
                               int32_t inputs) const noexcept override;
    int32_t getOutputShapes(trt::DimsExprs const* in, int32_t inputs, trt::DimsExprs const*, int32_t,
                            trt::DimsExprs* out, int32_t outputs, trt::IExprBuilder&) noexcept override;
    bool supportsFormatCombination(int32_t at, trt::DynamicPluginTensorDesc const* all, int32_t inputs,
                                   int32_t outputs) noexcept override;
    int32_t getNbOutputs() const noexcept override;
    char const* getMetadataString() noexcept override { return metadata_.c_str(); }

    int32_t onShapeChange(trt::PluginTensorDesc const* in, int32_t inputs, trt::PluginTensorDesc const* out,
                          int32_t outputs) noexcept override;
    int32_t enqueue(trt::PluginTensorDesc const* in, trt::PluginTensorDesc const* out, void const* const* from,
                    void* const* to, void*, cudaStream_t stream) noexcept override;
    trt::IPluginV3* attachToContext(trt::IPluginResourceContext*) noexcept override { return clone(); }
    trt::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

  private:
    struct Call;

    const manifest::Kernel& fitting(const Call& call, bool wildcards) const;
    void prepare(const manifest::Kernel& kernel);
    int32_t failed(const std::string& why) const noexcept;

    OpName op_;
    float attribute_;
    std::shared_ptr<const Folder> folder_;
    const manifest::Kernel* any_;  // of the op: how many tensors, which shapes follow which
    std::string metadata_;

    // What the last shape change chose.
    const manifest::Kernel* kernel_ = nullptr;
    const manifest::Cubin* cubin_ = nullptr;
    std::shared_ptr<const Module> module_;

    trt::PluginField fields_[2] = {};
    trt::PluginFieldCollection collection_ = {};
};

}  // namespace glimt::tensorrt
