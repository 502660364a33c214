//! The whole way on the example networks: slots, calibration, simulation, export, verification.
//!
//! The exported files stay in the test's temporary folder (`target/tmp/exports`), for other judges to look at.

mod cases;
mod data;
mod graphs;
mod layerwise;
mod outline;
mod pypi;
mod way;
