//! Intel VMX as data: VMCS fields, controls, exit reasons and the checks that VM entry makes.
//!
//! Owns no state and reads no processor: values come in as arguments. SDM vol. 3, chapters "Virtual-Machine Control
//! Structures", "VM Entries", "VM Exits" and appendix "VMX Capability Reporting Facility".

pub mod capabilities;
pub mod controls;
pub mod exit;
pub mod field;
pub mod interruption;
pub mod rules;
pub mod speculation;
