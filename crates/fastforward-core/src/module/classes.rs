//! The classes that the library knows, and the names under which queries find them.
//!
//! The list is one for models in code and for graph files, so that a query means the same in both. Models bring classes of
//! their own besides; these need not be listed anywhere.

mod layers;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use mpath::Class;

pub use layers::*;

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
    /// What every layer of the library is.
    quantized_module = "QuantizedModule", "fastforward::nn::QuantizedModule", [module];
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

/// Classes whose names always mean the library's own: what a model calls `Quantizer` has to be named by its path.
pub(crate) const RESERVED: [fn() -> Class; 6] = [
    module,
    quantized_module,
    quantizer,
    quantizer_stub,
    linear_quantizer,
    dynamic_linear_quantizer,
];

/// The layer of this name: [`linear`] for `Linear`, `fastforward::nn::Linear`, `torch.nn.Linear` or `QuantizedLinear`.
/// Other classes, and what is no class of the library, are `None`.
pub fn layer(name: &str) -> Option<Class> {
    let class = *NAMES.get(name)?;
    class.is_a(quantized_module()).then_some(class).filter(|&class| class != quantized_module())
}

/// Every name of a class of the library, with the class it means, sorted by name.
///
/// Taking the linear layer as the example, these are
///
/// - its short name and its path, `Linear` and `fastforward::nn::Linear`, where `ff::` may stand for `fastforward::`;
/// - the names that PyTorch gives it: `torch.nn.Linear`, `nn.Linear`, `torch.nn.modules.linear.Linear`;
/// - those of its quantized counterpart in the reference system: `QuantizedLinear`, and that behind `ff.nn.`,
///   `fastforward.nn.` and `fastforward.nn.linear.` (spec §5.7).
///
/// Where PyTorch has several classes for one of ours, each of them means ours: `torch.nn.BatchNorm1d` and
/// `torch.nn.BatchNorm2d` are both `BatchNorm`.
///
/// ```
/// use fastforward_core::module::classes;
/// let classes_of = |wanted| classes::names().filter(move |&(name, _)| name == wanted).map(|(_, class)| class);
/// assert!(classes_of("torch.nn.Linear").eq([classes::linear()]));
/// assert!(classes_of("ff.nn.QuantizedLinear").eq([classes::linear()]));
/// ```
pub fn names() -> impl Iterator<Item = (&'static str, Class)> {
    NAMES.iter().map(|(name, &class)| (name.as_str(), class))
}

static NAMES: LazyLock<BTreeMap<String, Class>> = LazyLock::new(|| {
    let mut names = BTreeMap::new();
    let mut add = |name: String, class: Class| {
        let other = names.insert(name, class);
        debug_assert!(other.is_none_or(|other| other == class), "{other:?} and {class:?}");
    };
    for class in RESERVED.map(|class| class()) {
        add(class.name().to_owned(), class);
        add(class.path().to_owned(), class);
        add(class.path().replacen("fastforward", "ff", 1), class);
    }
    for name in ["torch.nn.Module", "nn.Module", "torch.nn.modules.module.Module"] {
        add(name.to_owned(), module());
    }
    for (file, class) in [
        ("quantizer", quantizer()),
        ("quantizer", quantizer_stub()),
        ("linear_quantizer", linear_quantizer()),
        ("dynamic_linear_quantizer", dynamic_linear_quantizer()),
        ("quantized_module", quantized_module()),
    ] {
        for package in ["ff.nn", "fastforward.nn"] {
            add(format!("{package}.{}", class.name()), class);
            add(format!("{package}.{file}.{}", class.name()), class);
        }
    }
    for layer in layers::LAYERS {
        layer.for_each_name(|name| add(name, (layer.class)()));
    }
    names
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_reference_means_one_class() {
        // What `fastforward.nn` exports in the reference (spec §5.7), and the class it derives from.
        for (python, torch, class) in [
            ("linear.QuantizedLinear", "linear.Linear", linear()),
            ("conv.QuantizedConv1d", "conv.Conv1d", conv1d()),
            ("conv.QuantizedConv2d", "conv.Conv2d", conv2d()),
            ("embedding.QuantizedEmbedding", "sparse.Embedding", embedding()),
            ("normalization.QuantizedLayerNorm", "normalization.LayerNorm", layer_norm()),
            ("activations.QuantizedRelu", "activation.ReLU", relu()),
            ("activations.QuantizedSilu", "activation.SiLU", silu()),
            ("container.QuantizedSequential", "container.Sequential", sequential()),
            ("container.QuantizedModuleList", "container.ModuleList", module_list()),
            ("container.QuantizedModuleDict", "container.ModuleDict", module_dict()),
            ("container.QuantizedParameterList", "container.ParameterList", parameter_list()),
            ("container.QuantizedParameterDict", "container.ParameterDict", parameter_dict()),
        ] {
            let (_, quantized) = python.split_once('.').unwrap();
            let (_, float) = torch.split_once('.').unwrap();
            for name in [
                quantized.to_owned(),
                format!("ff.nn.{quantized}"),
                format!("fastforward.nn.{quantized}"),
                format!("fastforward.nn.{python}"),
                float.to_owned(),
                format!("torch.nn.{float}"),
                format!("torch.nn.modules.{torch}"),
                class.path().to_owned(),
            ] {
                assert_eq!(layer(&name), Some(class), "{name}");
            }
        }
        for name in ["RMSNorm", "RmsNorm", "torch.nn.RMSNorm", "fastforward::nn::RmsNorm"] {
            assert_eq!(layer(name), Some(rms_norm()), "{name}");
        }
        for name in ["BatchNorm", "torch.nn.BatchNorm1d", "torch.nn.modules.batchnorm.BatchNorm3d"]
        {
            assert_eq!(layer(name), Some(batch_norm()), "{name}");
        }
        assert_eq!(NAMES["ff.nn.QuantizedModule"], quantized_module());
        assert_eq!(NAMES["fastforward.nn.linear_quantizer.LinearQuantizer"], linear_quantizer());
        for name in ["Module", "Quantizer", "QuantizedModule", "torch.nn.Linea"] {
            assert_eq!(layer(name), None, "{name}");
        }
    }

    #[test]
    fn short_names_and_paths_of_layers_are_their_own() {
        for class in layers::LAYERS.iter().map(|layer| (layer.class)()) {
            assert_eq!(NAMES[class.name()], class);
            assert_eq!(NAMES[class.path()], class);
            assert_eq!(class.ancestors(), [quantized_module(), module()]);
        }
    }
}
