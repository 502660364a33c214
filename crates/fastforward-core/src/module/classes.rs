//! The classes every model knows, and the names under which queries find them.

use std::sync::LazyLock;

use mpath::Class;

/// Defines functions that return classes. Each class is defined when it is first asked for; afterwards asking costs a
/// load, so that a walk may ask every node.
macro_rules! classes {
    ($($(#[$doc:meta])* $function:ident = $name:literal, $path:literal, [$($extends:ident),*];)*) => {
        $(
            $(#[$doc])*
            pub fn $function() -> Class {
                static CLASS: LazyLock<Class> =
                    LazyLock::new(|| Class::define($name, $path, &[$($extends()),*]));
                *CLASS
            }
        )*
    };
}

classes! {
    /// What every module is.
    module = "Module", "fastforward::Module", [];
    /// A list of modules: a `Vec` or an array.
    module_list = "ModuleList", "fastforward::nn::ModuleList", [module];
    /// A map of named modules.
    module_dict = "ModuleDict", "fastforward::nn::ModuleDict", [module];
    /// What every quantizer is, stubs included.
    quantizer = "Quantizer", "fastforward::quantization::Quantizer", [module];
    /// The placeholder in an empty slot.
    quantizer_stub = "QuantizerStub", "fastforward::quantization::QuantizerStub", [quantizer];
    /// Static affine quantization.
    linear_quantizer = "LinearQuantizer", "fastforward::quantization::LinearQuantizer", [quantizer];
    /// Affine quantization whose parameters come from the data.
    dynamic_linear_quantizer = "DynamicLinearQuantizer",
        "fastforward::quantization::DynamicLinearQuantizer", [quantizer];
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
