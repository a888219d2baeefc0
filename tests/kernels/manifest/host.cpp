// In the place of TensorRT, for the tests of the plugins, which are compiled into it with sanitizers: finds a creator,
// makes a plugin, asks what TensorRT asks while it builds and runs an engine. A command a line in, a line out.
//
//     create OP FIELD=FLOAT          restore [DIGEST]     clone     destroy     context N     creators
//     formats DTYPES                 a letter for each tensor: y or n (all before it are taken as they are)
//     types DTYPES COUNT             of the outputs, from those of the inputs
//     shapes COUNT                   which input each output has the shape of
//     configure DTYPES SHAPES        a size of -1 is not known yet
//     change DTYPES SHAPES           onShapeChange
//     enqueue DTYPES SHAPES ADDRESSES STREAM SIZES
#include <dlfcn.h>

#include <cstring>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "tensorrt/plugin.h"

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count);
extern "C" void setLoggerFinder(nvinfer1::ILoggerFinder* finder);
// Of AddressSanitizer: told of every allocation of the process.
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*)(const volatile void*, size_t),
                                                         void (*)(const volatile void*));

namespace {

using namespace nvinfer1;

int g_allocations = 0;
void count_allocation(const volatile void*, size_t) {
    ++g_allocations;
}
void ignore_free(const volatile void*) {}

struct Logger final : ILogger {
    std::string said;
    void log(Severity, const char* text) noexcept override { said += (said.empty() ? "" : " | ") + std::string(text); }
};
struct Finder final : ILoggerFinder {
    Logger logger;
    ILogger* findLogger() override { return &logger; }
};

template <typename T>
T& fake(const char* name) {
    static void* library = dlopen("libcuda.so.1", RTLD_NOW);
    if (library == nullptr) throw std::runtime_error("no fake driver");
    return *static_cast<T*>(dlsym(library, name));
}

std::vector<std::string> split(const std::string& text, char at) {
    std::vector<std::string> parts;
    std::istringstream from(text);
    for (std::string part; std::getline(from, part, at);)
        parts.push_back(part);
    return parts;
}

DataType dtype(const std::string& name) {
    return std::map<std::string, DataType>{
        {"fp32", DataType::kFLOAT}, {"fp16", DataType::kHALF}, {"bf16", DataType::kBF16}, {"int32", DataType::kINT32}}
        .at(name);
}
std::string name_of(DataType type) {
    return type == DataType::kFLOAT ? "fp32" : type == DataType::kHALF ? "fp16" : "bf16";
}

std::vector<PluginTensorDesc> descs(const std::string& dtypes, const std::string& shapes) {
    std::vector<PluginTensorDesc> made;
    const auto names = split(dtypes, ','), each = split(shapes, ';');
    for (size_t i = 0; i < names.size(); ++i) {
        PluginTensorDesc desc{{}, dtype(names[i].substr(0, names[i].find('!'))), TensorFormat::kLINEAR, 1};
        if (names[i].back() == '!') desc.format = TensorFormat::kCHW2;
        for (const std::string& size : split(i < each.size() ? each[i] : "", ','))
            desc.dims.d[desc.dims.nbDims++] = std::stoll(size);
        made.push_back(desc);
    }
    return made;
}

std::vector<DynamicPluginTensorDesc> dynamic(const std::vector<PluginTensorDesc>& from) {
    std::vector<DynamicPluginTensorDesc> made;
    for (const PluginTensorDesc& desc : from)
        made.push_back({desc, desc.dims, desc.dims, desc.dims});
    return made;
}

class Host {
  public:
    ~Host() { delete plugin_; }

    std::string answer(const std::string& line) {
        std::istringstream from(line);
        std::string command;
        from >> command;
        finder.logger.said.clear();
        const std::string says = act(command, from);
        return finder.logger.said.empty() ? "ok " + says : "error " + finder.logger.said;
    }

    Finder finder;

  private:
    std::string act(const std::string& command, std::istream& from) {
        if (command == "creators") return creators();
        if (command == "create") return create(from);
        if (command == "restore") return restore(from);
        if (command == "clone") {
            IPluginV3* other = plugin_->clone();
            return take(other);
        }
        if (command == "destroy") {
            const std::string none = take(nullptr);
            return none + " alive " + std::to_string(fake<intptr_t>("fake_alive"));
        }
        if (command == "context") {
            from >> fake<intptr_t>("fake_context");
            return "";
        }
        if (command == "formats") return formats(from);
        if (command == "types") return types(from);
        if (command == "shapes") return shapes(from);
        std::string dtypes, sizes;
        from >> dtypes >> sizes;
        const auto all = descs(dtypes, sizes);
        const auto outputs = static_cast<size_t>(build()->getNbOutputs()), inputs = all.size() - outputs;
        if (command == "configure") {
            const auto wide = dynamic(all);
            return std::to_string(build()->configurePlugin(wide.data(), static_cast<int>(inputs), &wide[inputs],
                                                           static_cast<int>(outputs)));
        }
        if (command == "change")
            return std::to_string(runtime()->onShapeChange(all.data(), static_cast<int>(inputs), &all[inputs],
                                                           static_cast<int>(outputs)));
        return enqueue(all, inputs, from);
    }

    IPluginV3OneBuild* build() {
        return static_cast<IPluginV3OneBuild*>(plugin_->getCapabilityInterface(PluginCapabilityType::kBUILD));
    }
    IPluginV3OneRuntime* runtime() {
        return static_cast<IPluginV3OneRuntime*>(plugin_->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    }

    std::string take(IPluginV3* other) {
        delete plugin_;
        plugin_ = other;
        return other == nullptr ? "none" : "made";
    }

    static std::vector<IPluginCreatorV3One*> all() {
        int32_t count = 0;
        IPluginCreatorInterface* const* found = getCreators(count);
        std::vector<IPluginCreatorV3One*> made;
        for (int32_t i = 0; i < count; ++i)
            made.push_back(static_cast<IPluginCreatorV3One*>(found[i]));
        return made;
    }

    static std::string creators() {
        std::string text;
        for (IPluginCreatorV3One* creator : all()) {
            const PluginFieldCollection* fields = creator->getFieldNames();
            text += std::string(creator->getPluginName()) + ":" + fields->fields[0].name + ":" +
                    creator->getPluginVersion() + ":" + creator->getPluginNamespace() + " ";
        }
        return text;
    }

    IPluginCreatorV3One* creator(const std::string& op) {
        for (IPluginCreatorV3One* each : all())
            if (each->getPluginName() == op) return each;
        throw std::runtime_error("no creator");
    }

    std::string create(std::istream& from) {
        std::string field;
        from >> op_ >> field;
        const std::string name = field.substr(0, field.find('='));
        const float value = std::stof(field.substr(field.find('=') + 1));
        const PluginField made{name.c_str(), &value, PluginFieldType::kFLOAT32, 1};
        const PluginFieldCollection fields{1, &made};
        return take(creator(op_)->createPlugin("node", &fields, TensorRTPhase::kBUILD));
    }

    // As from a plan: the fields are written, the plugin goes, and another is made from copies of them.
    std::string restore(std::istream& from) {
        std::string other;
        from >> other;
        const PluginFieldCollection* fields = runtime()->getFieldsToSerialize();
        std::vector<std::vector<char>> data;
        std::vector<std::string> names;
        std::vector<PluginField> made;
        for (int32_t i = 0; i < fields->nbFields; ++i) {
            const PluginField& field = fields->fields[i];
            const size_t bytes = static_cast<size_t>(field.length) * (field.type == PluginFieldType::kCHAR ? 1 : 4);
            const char* start = static_cast<const char*>(field.data);
            data.emplace_back(start, start + bytes);
            names.emplace_back(field.name);
            if (!other.empty() && field.type == PluginFieldType::kCHAR) data.back() = {other.begin(), other.end()};
            made.push_back({nullptr, nullptr, field.type, field.length});
        }
        for (size_t i = 0; i < made.size(); ++i) {
            made[i].name = names[i].c_str();
            made[i].data = data[i].data();
            if (made[i].type == PluginFieldType::kCHAR) made[i].length = static_cast<int32_t>(data[i].size());
        }
        take(nullptr);
        const PluginFieldCollection again{static_cast<int32_t>(made.size()), made.data()};
        return take(creator(op_)->createPlugin("node", &again, TensorRTPhase::kRUNTIME));
    }

    std::string formats(std::istream& from) {
        std::string dtypes, text;
        from >> dtypes;
        const auto wide = dynamic(descs(dtypes, ""));
        const int outputs = build()->getNbOutputs(), count = static_cast<int>(wide.size());
        for (int at = 0; at < count; ++at)
            text += build()->supportsFormatCombination(at, wide.data(), count - outputs, outputs) ? 'y' : 'n';
        return text;
    }

    std::string types(std::istream& from) {
        std::string dtypes, text;
        int outputs = 0;
        from >> dtypes >> outputs;
        std::vector<DataType> in, out(static_cast<size_t>(outputs), DataType::kINT32);
        for (const std::string& name : split(dtypes, ','))
            in.push_back(dtype(name));
        build()->getOutputDataTypes(out.data(), outputs, in.data(), static_cast<int>(in.size()));
        for (const DataType type : out)
            text += name_of(type) + " ";
        return text;
    }

    std::string shapes(std::istream& from) {
        int inputs = 0;
        from >> inputs;
        const int outputs = build()->getNbOutputs();
        std::vector<DimsExprs> in(static_cast<size_t>(inputs)), out(static_cast<size_t>(outputs));
        for (int i = 0; i < inputs; ++i)
            in[static_cast<size_t>(i)].nbDims = i;              // its number
        auto* builder = reinterpret_cast<IExprBuilder*>(this);  // never used
        build()->getOutputShapes(in.data(), inputs, nullptr, 0, out.data(), outputs, *builder);
        std::string text;
        for (const DimsExprs& each : out)
            text += std::to_string(each.nbDims) + " ";
        return text;
    }

    std::string enqueue(const std::vector<PluginTensorDesc>& all, size_t inputs, std::istream& from) {
        std::string addresses, sizes;
        intptr_t stream = 0;
        from >> addresses >> stream >> sizes;
        std::vector<void*> pointers;
        for (const std::string& word : split(addresses, ','))
            pointers.push_back(reinterpret_cast<void*>(std::stoull(word)));
        int* each = &fake<int>("fake_sizes");
        for (const std::string& word : split(sizes, ','))
            *each++ = std::stoi(word);
        *each = 0;
        const intptr_t before = fake<intptr_t>("fake_launches");
        g_allocations = 0;
        const int code = runtime()->enqueue(all.data(), &all[inputs], pointers.data(), &pointers[inputs], nullptr,
                                            reinterpret_cast<cudaStream_t>(stream));
        const int allocations = g_allocations;
        return std::to_string(code) + " allocations " + std::to_string(allocations) + launched(before, sizes);
    }

    static std::string launched(intptr_t before, const std::string& sizes) {
        std::ostringstream text;
        text << " launches " << fake<intptr_t>("fake_launches") - before;
        if (fake<intptr_t>("fake_launches") == before) return text.str();
        text << " grid " << fake<unsigned>("fake_grid") << " threads " << fake<unsigned>("fake_threads") << " shared "
             << fake<unsigned>("fake_shared") << " asked " << fake<intptr_t>("fake_asked_shared") << " stream "
             << fake<intptr_t>("fake_stream") << " loaded " << fake<intptr_t>("fake_loaded") << " alive "
             << fake<intptr_t>("fake_alive") << " entry " << &fake<char>("fake_entry") << " content "
             << std::string(&fake<char>("fake_content")).substr(0, 60) << " params ";
        size_t count = 0;
        for (const std::string& word : split(sizes, ','))
            count += std::stoul(word);
        const unsigned char* bytes = &fake<unsigned char>("fake_params");
        for (size_t i = 0; i < count; ++i)
            text << "0123456789abcdef"[bytes[i] >> 4] << "0123456789abcdef"[bytes[i] & 15];
        return text.str();
    }

    IPluginV3* plugin_ = nullptr;
    std::string op_;
};

}  // namespace

int main() {
    __sanitizer_install_malloc_and_free_hooks(count_allocation, ignore_free);
    Host host;
    setLoggerFinder(&host.finder);
    for (std::string line; std::getline(std::cin, line);)
        std::cout << host.answer(line) << std::endl;
}
