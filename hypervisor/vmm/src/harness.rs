//! One harness per property: property tests here, fuzz targets under cargo-bolero, proofs under Kani.

mod input;
mod memory;
mod nested;
mod pipe;
