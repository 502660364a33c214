//! Operators whose meaning, defaults or name changed.

use super::{Refusal, Step};
use crate::proto::{AttributeProto, attribute_int, attribute_proto::AttributeType, node};

impl Step<'_> {
    pub(super) fn batch_normalization_without_spatial(&mut self) -> Refusal {
        match self.take_attribute("spatial") {
            Some(attribute) if attribute.i() == 0 => {
                Err("statistics for each position (`spatial = 0`) left the standard in set 9"
                    .to_owned())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn batch_normalization_at_inference(&mut self) -> Refusal {
        if self.node.output.iter().skip(1).any(|name| !name.is_empty()) {
            return Err("it returns statistics of training, which changed in set 14".to_owned());
        }
        self.node.output.truncate(1);
        Ok(())
    }

    pub(super) fn upsample_is_resize(&mut self) -> Refusal {
        self.rename("Resize")
    }

    /// Before set 11, `Resize` took the sample at `floor(x / scale)`.
    pub(super) fn resize_was_asymmetric(&mut self) -> Refusal {
        if self.node.input.len() != 2 {
            return Err(format!("has {} inputs, expected 2", self.node.input.len()));
        }
        let roi = self.floats("roi", &[0], &[]);
        self.node.input.insert(1, roi);
        self.set_string("coordinate_transformation_mode", "asymmetric");
        self.set_string("nearest_mode", "floor");
        Ok(())
    }

    /// Before set 10 the mask had the type of the data.
    pub(super) fn dropout_without_float_mask(&mut self) -> Refusal {
        if self.node.output.iter().skip(1).any(|name| !name.is_empty()) {
            return Err("its mask changed its type in set 10".to_owned());
        }
        Ok(())
    }

    /// Before set 13 these operators worked on all axes from `axis` on, taken together.
    pub(super) fn softmax_over_one_axis(&mut self) -> Refusal {
        let axis = self.take_attribute("axis").map_or(1, |attribute| attribute.i());
        let rank = self.node.input.first().and_then(|input| self.upgrader.ranks.get(input));
        if axis == -1 || rank.is_some_and(|rank| rank - 1 == axis) {
            self.node.attribute.push(attribute_int("axis", -1));
            return Ok(());
        }
        let (Some(input), Some(output)) =
            (self.node.input.first().cloned(), self.node.output.first().cloned())
        else {
            return Err("lacks an input or an output".to_owned());
        };
        let shape = self.prepend("Shape", "shape", &[&input]);
        let flat = self.prepend("Flatten", "flat", &[&input]);
        if let Some(flatten) = self.before.last_mut() {
            flatten.attribute.push(attribute_int("axis", axis));
        }
        let result = self.upgrader.names.fresh(&self.base("flat_result"));
        let name = self.upgrader.names.fresh(&format!("{result}_Reshape"));
        self.after.push(node("Reshape", &name, &[&result, &shape], &[&output]));
        self.node.input[0] = flat;
        self.node.output[0] = result;
        self.node.attribute.push(attribute_int("axis", -1));
        Ok(())
    }

    pub(super) fn roi_align_was_half_a_pixel_off(&mut self) -> Refusal {
        self.set_string("coordinate_transformation_mode", "output_half_pixel");
        Ok(())
    }

    pub(super) fn split_says_how_many(&mut self) -> Refusal {
        if self.node.input_at(1).is_none() {
            let outputs = self.node.output.len() as i64;
            self.node.input.truncate(1);
            self.node.attribute.push(attribute_int("num_outputs", outputs));
        }
        Ok(())
    }

    pub(super) fn grid_sample_modes(&mut self) -> Refusal {
        let mode = self.take_attribute("mode");
        let old = mode
            .as_ref()
            .map_or("bilinear", |mode| std::str::from_utf8(mode.s()).unwrap_or_default());
        let new = match old {
            "bilinear" => "linear",
            "bicubic" => "cubic",
            "nearest" => "nearest",
            other => return Err(format!("mode `{other}` is unknown")),
        };
        self.set_string("mode", new);
        Ok(())
    }

    /// Before set 21 scale and bias held one value per group; now one per channel, so each is repeated for the channels
    /// of its group.
    pub(super) fn group_normalization_per_channel(&mut self) -> Refusal {
        let groups = self.node.int_or("num_groups", 0);
        if groups < 1 || self.node.input.len() != 3 {
            return Err("lacks `num_groups`, scale or bias".to_owned());
        }
        let data = self.node.input[0].clone();
        let channels = self.prepend("Shape", "channels", &[&data]);
        if let Some(shape) = self.before.last_mut() {
            shape.attribute = vec![attribute_int("start", 1), attribute_int("end", 2)];
        }
        let n_groups = self.ints("groups", &[1], &[groups]);
        let per_group = self.prepend("Div", "channels_per_group", &[&channels, &n_groups]);
        let spread = self.prepend("Concat", "spread", &[&n_groups, &per_group]);
        if let Some(concat) = self.before.last_mut() {
            concat.attribute = vec![attribute_int("axis", 0)];
        }
        let column = self.ints("column", &[2], &[groups, 1]);
        let vector = self.ints("vector", &[1], &[-1]);
        for (position, what) in [(1, "scale"), (2, "bias")] {
            let parameter = self.node.input[position].clone();
            let as_column =
                self.prepend("Reshape", &format!("{what}_column"), &[&parameter, &column]);
            let repeated =
                self.prepend("Expand", &format!("{what}_repeated"), &[&as_column, &spread]);
            let flat = self.prepend("Reshape", what, &[&repeated, &vector]);
            self.node.input[position] = flat;
        }
        Ok(())
    }

    fn set_string(&mut self, name: &str, value: &str) {
        self.take_attribute(name);
        self.node.attribute.push(AttributeProto {
            name: Some(name.to_owned()),
            r#type: Some(AttributeType::String as i32),
            s: Some(value.to_owned().into()),
            ..AttributeProto::default()
        });
    }
}
