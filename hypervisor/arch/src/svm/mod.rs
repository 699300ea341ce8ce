//! AMD SVM as data: the VMCB's fields, intercepts, exit codes and the checks that VMRUN makes.
//!
//! Owns no state and reads no processor: values come in as arguments. APM vol. 2, chapter "Secure Virtual Machine" and
//! appendices "VMCB Layout" and "SVM Intercept Exit Codes".

pub mod event;
pub mod exit;
pub mod features;
pub mod intercept;
pub mod rules;
pub mod segment;
pub mod speculation;
pub mod vmcb;
