//! Layers with one setting and no parameters.

/// Defines layers with slots for input and output, and one setting. A row reads: documentation, name, class, operator with
/// its arguments after the input, where the setting's name is a reference to it; then documentation, name and type of the
/// setting.
macro_rules! layers_with_a_setting {
    ($(
        $(#[$doc:meta])* $name:ident, $class:ident, $operator:ident($($argument:expr),+);
        $(#[$field_doc:meta])* $field:ident: $ty:ty;
    )*) => { $(
        $(#[$doc])*
        #[derive(Module, Debug)]
        #[module(class = fastforward::module::classes::$class())]
        pub struct $name {
            $(#[$field_doc])*
            #[module(skip)]
            pub $field: $ty,
            /// `activation/input`
            pub input_quantizer: QuantizerSlot,
            /// `activation/output`
            pub output_quantizer: QuantizerSlot,
        }

        impl $name {
            /// The layer with empty slots.
            pub fn new($field: $ty) -> Self {
                Self {
                    $field,
                    input_quantizer: QuantizerSlot::input(),
                    output_quantizer: QuantizerSlot::output(),
                }
            }
        }

        impl Layer for $name {
            fn forward(&self, x: &Value) -> Result<Value> {
                let $field = &self.$field;
                F::$operator(&self.input_quantizer.apply(x)?, $($argument,)+ &self.output_quantizer)
            }
        }
    )* };
}

pub(super) use layers_with_a_setting;
