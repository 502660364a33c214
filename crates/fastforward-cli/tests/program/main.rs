//! The program as a user meets it: whole transcripts, wrong inputs, files and their bytes.

mod algorithms;
mod bench;
#[cfg(unix)]
mod disk_full;
mod external_data;
mod files;
#[cfg(target_os = "linux")]
mod memory;
mod pack_quantized;
mod rules;
mod sensitivity;
mod transcripts;
mod weight_files;
mod weights_only;
mod wrong_inputs;
