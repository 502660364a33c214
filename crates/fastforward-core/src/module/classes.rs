//! The classes every model knows, and the names under which queries find them.

use mpath::Class;

/// What every module is.
pub fn module() -> Class {
    Class::define("Module", "fastforward::Module", &[])
}

/// A list of modules: a `Vec` or an array.
pub fn module_list() -> Class {
    Class::define("ModuleList", "fastforward::nn::ModuleList", &[module()])
}

/// A map of named modules.
pub fn module_dict() -> Class {
    Class::define("ModuleDict", "fastforward::nn::ModuleDict", &[module()])
}

/// What every quantizer is, stubs included.
pub fn quantizer() -> Class {
    Class::define("Quantizer", "fastforward::quantization::Quantizer", &[module()])
}

/// The placeholder in an empty slot.
pub fn quantizer_stub() -> Class {
    Class::define("QuantizerStub", "fastforward::quantization::QuantizerStub", &[quantizer()])
}

/// Static affine quantization.
pub fn linear_quantizer() -> Class {
    Class::define("LinearQuantizer", "fastforward::quantization::LinearQuantizer", &[quantizer()])
}

/// Affine quantization whose parameters come from the data.
pub fn dynamic_linear_quantizer() -> Class {
    Class::define(
        "DynamicLinearQuantizer",
        "fastforward::quantization::DynamicLinearQuantizer",
        &[quantizer()],
    )
}

/// The names under which the reference system's queries know these classes (`ff.nn.QuantizerStub`), with the class each
/// one means. The short name and the path of every class are names of it besides.
pub fn reference_names() -> Vec<(&'static str, Class)> {
    vec![
        ("torch.nn.Module", module()),
        ("torch.nn.ModuleList", module_list()),
        ("torch.nn.ModuleDict", module_dict()),
        ("ff.nn.Quantizer", quantizer()),
        ("ff.nn.QuantizerStub", quantizer_stub()),
        ("ff.nn.LinearQuantizer", linear_quantizer()),
        ("ff.nn.DynamicLinearQuantizer", dynamic_linear_quantizer()),
        ("fastforward.nn.Quantizer", quantizer()),
        ("fastforward.nn.QuantizerStub", quantizer_stub()),
        ("fastforward.nn.LinearQuantizer", linear_quantizer()),
        ("fastforward.nn.DynamicLinearQuantizer", dynamic_linear_quantizer()),
    ]
}
