//! Attributes that became inputs.

use super::{Refusal, Step};

impl Step<'_> {
    /// An attribute of integers becomes the input at `position`. An empty list of axes stays away: as an input it could
    /// mean no axis at all.
    pub(super) fn ints_to_input(&mut self, name: &str, position: usize) -> Refusal {
        let Some(attribute) = self.take_attribute(name) else { return Ok(()) };
        let values = match attribute.i {
            Some(single) => vec![single],
            None => attribute.ints,
        };
        if values.is_empty() {
            return Ok(());
        }
        let value = self.ints(name, &[values.len()], &values);
        self.set_input(position, value);
        Ok(())
    }

    pub(super) fn floats_to_input(&mut self, name: &str, position: usize) -> Refusal {
        let Some(attribute) = self.take_attribute(name) else {
            return Err(format!("lacks the attribute `{name}`"));
        };
        let value = self.floats(name, &[attribute.floats.len()], &attribute.floats);
        self.set_input(position, value);
        Ok(())
    }

    pub(super) fn slice_inputs(&mut self) -> Refusal {
        for (position, name) in [(1, "starts"), (2, "ends"), (3, "axes")] {
            let Some(attribute) = self.take_attribute(name) else {
                if name == "axes" {
                    continue;
                }
                return Err(format!("lacks the attribute `{name}`"));
            };
            let value = self.ints(name, &[attribute.ints.len()], &attribute.ints);
            self.set_input(position, value);
        }
        Ok(())
    }

    pub(super) fn clip_inputs(&mut self) -> Refusal {
        for (position, name) in [(1, "min"), (2, "max")] {
            if let Some(attribute) = self.take_attribute(name) {
                let value = self.floats(name, &[], &[attribute.f()]);
                self.set_input(position, value);
            }
        }
        Ok(())
    }

    pub(super) fn pad_inputs(&mut self) -> Refusal {
        let Some(pads) = self.take_attribute("pads") else {
            return Err("lacks the attribute `pads`".to_owned());
        };
        let value = self.ints("pads", &[pads.ints.len()], &pads.ints);
        self.set_input(1, value);
        if let Some(attribute) = self.take_attribute("value") {
            let value = self.floats("value", &[], &[attribute.f()]);
            self.set_input(2, value);
        }
        Ok(())
    }

    pub(super) fn dropout_inputs(&mut self) -> Refusal {
        if let Some(attribute) = self.take_attribute("ratio") {
            let value = self.floats("ratio", &[], &[attribute.f()]);
            self.set_input(1, value);
        }
        Ok(())
    }

    pub(super) fn dft_axis(&mut self) -> Refusal {
        // The default moved from the second to the last axis but one, so the axis is always stated.
        let axis = self.take_attribute("axis").map_or(1, |attribute| attribute.i());
        let value = self.ints("axis", &[], &[axis]);
        self.set_input(2, value);
        Ok(())
    }
}
