//! Progress on a terminal.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{IsTerminal, stderr};
use std::time::Duration;

use fastforward_onnx::pipeline::{Progress, Stage};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::output::to_stderr;

/// A bar per stage on standard error, with rate and time left; nothing where that is no terminal.
pub(crate) struct Bars {
    quiet: bool,
    shown: bool,
    current: RefCell<Option<ProgressBar>>,
    /// Seconds by the position of the algorithm.
    times: RefCell<BTreeMap<usize, f64>>,
}

impl Bars {
    pub(crate) fn new(quiet: bool) -> Self {
        Self {
            quiet,
            shown: !quiet && stderr().is_terminal(),
            current: RefCell::new(None),
            times: RefCell::default(),
        }
    }

    /// How long each algorithm worked: its position in the configuration, and seconds.
    pub(crate) fn times(&self) -> BTreeMap<usize, f64> {
        self.times.borrow().clone()
    }

    fn clear(&self) {
        if let Some(bar) = self.current.borrow_mut().take() {
            bar.finish_and_clear();
        }
    }
}

const UNCOUNTED: &str = "{msg:<12} {spinner} {elapsed}";

fn counted(unit: &str) -> String {
    format!(
        "{{msg:<12}} [{{bar:24}}] {{human_pos}}/{{human_len}} {unit}, {{per_sec}}, {{eta}} left"
    )
}

impl Progress for Bars {
    fn start(&self, stage: Stage, n_samples: usize) {
        self.clear();
        if !self.shown {
            return;
        }
        let (bar, template) = match n_samples {
            0 => (ProgressBar::new_spinner(), UNCOUNTED.to_owned()),
            n => (ProgressBar::new(n as u64), counted(stage.unit())),
        };
        // A template that cannot be parsed would show the default bar instead.
        if let Ok(style) = ProgressStyle::with_template(&template) {
            let rate = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                // The bar shows what fits; there is nobody to tell if nothing does.
                let _shown = write!(out, "{:.0}", state.per_sec());
            };
            bar.set_style(style.progress_chars("=> ").with_key("rate", rate));
        }
        bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        bar.set_message(stage.to_string());
        bar.enable_steady_tick(Duration::from_millis(200));
        *self.current.borrow_mut() = Some(bar);
    }

    fn advance(&self, n_samples: usize) {
        if let Some(bar) = &*self.current.borrow() {
            bar.inc(n_samples as u64);
        }
    }

    fn finish(&self) {
        self.clear();
    }

    fn algorithm(&self, position: usize, seconds: f64) {
        *self.times.borrow_mut().entry(position).or_default() += seconds;
    }

    fn resumed(&self, layer: &str) {
        if self.quiet {
            return;
        }
        let text = format!("`{layer}` was finished by an earlier run");
        match &*self.current.borrow() {
            Some(bar) => bar.suspend(|| to_stderr(&text)),
            None => to_stderr(&text),
        }
    }
}

impl Drop for Bars {
    /// Also where an error ends a stage, the message must not stand behind half a bar.
    fn drop(&mut self) {
        self.clear();
    }
}
