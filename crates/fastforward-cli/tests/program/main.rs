//! The program as a user meets it: whole transcripts, wrong inputs, files and their bytes.

mod algorithms;
mod bench;
mod external_data;
mod files;
#[cfg(target_os = "linux")]
mod memory;
mod rules;
mod sensitivity;
mod transcripts;
mod weight_files;
mod weights_only;
mod wrong_inputs;
