//! Tags that say which operators stand next to a slot (spec §9).

use crate::flags;
use crate::module::Module;
use crate::quantization::quantizer::Tag;
use crate::range_setting::SlotSource;
use crate::tensor::{Result, record};

/// Tags every slot with `before/<operator>` and `after/<operator>`, as one forward shows them: `before/linear` on a slot whose
/// output goes straight into a linear operator, `after/relu` on one that is fed by a relu.
///
/// `forward` runs once, in float, without gradients, strict mode off. Stubs and quantizers are tagged alike. Tags add up over
/// calls, so that other branches can be recorded by other inputs. What is seen is what goes through slots and the
/// [functional operators](crate::tensor::functional); a value that takes another way, through candle directly, loses its
/// trace, and the raw input of the model and parameters come after no operator.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fastforward::mpath::Tag;
/// use fastforward::nn::{Layer, Linear};
/// use fastforward::quantization::annotate_operator_metadata;
///
/// let layer = Linear::from_tensors(Tensor::new(&[[0.3f32, -0.9]], &Device::Cpu)?, None)?;
/// let x = Tensor::new(&[[1f32, 2.0]], &Device::Cpu)?;
/// annotate_operator_metadata(&layer, || layer.forward_tensor(&x).map(drop))?;
/// assert!(layer.weight_quantizer.tags().contains(Tag::new("before/linear")));
/// assert!(layer.output_quantizer.tags().contains(Tag::new("after/linear")));
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
///
/// # Errors
/// What `forward` reports; nothing is tagged then.
pub fn annotate_operator_metadata<M: Module>(
    model: &M,
    forward: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let _lenient = flags::strict_quantization(false);
    let _constants = flags::inference();
    let (result, neighbours) = record::record(forward);
    result?;
    let known: std::collections::HashSet<usize> =
        model.slot_entries().iter().map(|entry| entry.slot.id()).collect();
    for neighbour in neighbours.iter().filter(|neighbour| known.contains(&neighbour.slot.id())) {
        let side = if neighbour.before { "before" } else { "after" };
        neighbour.slot.add_tag(Tag::new(&format!("{side}/{}", neighbour.operator)));
    }
    Ok(())
}
