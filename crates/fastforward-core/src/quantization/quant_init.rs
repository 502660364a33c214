//! Rules that put quantizers into the slots of a model.

mod factory;

mod transaction;

pub use factory::{ChannelAxis, Factory, QuantizerSpec};

pub use transaction::{InitializeOptions, Outcome, OverwritePolicy};

/// The attribute of a slot's metadata that holds the axis of output channels of a weight.
pub const CHANNEL_AXIS: &str = "channel_axis";
