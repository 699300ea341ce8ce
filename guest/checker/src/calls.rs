//! Lamina's calls and their errors, as `lamina_arch::hypercall` writes them down.

use guest_rt::hypercall::{Error, Lamina};
use guest_rt::probe;
use lamina_arch::hypercall as abi;

use crate::Report;

pub(crate) fn check(report: &mut Report) {
    let Some(lamina) = Lamina::find() else {
        report.check("call-found", false, "no Lamina here");
        return;
    };
    report.check("call-found", lamina.version() == abi::VERSION, lamina.version());
    let text = b"written by a call\r\n";
    let mut gives = |name: &str, expected: Result<u64, i64>, arguments: (u64, u64, u64)| {
        let result = lamina.harmless(arguments.0, arguments.1, arguments.2);
        report.check(name, result == expected.map_err(Error), result);
    };
    gives("call-nop", Ok(0), (abi::NOP, 0, 0));
    gives("call-yield", Ok(0), (abi::YIELD, 0, 0));
    gives("call-unknown", Err(abi::ENOSYS), (5, 0, 0));
    gives("call-unknown-high", Err(abi::ENOSYS), (1 << 32, 0, 0));
    gives("call-unknown-all-ones", Err(abi::ENOSYS), (u64::MAX, 0, 0));
    gives("call-write-nothing", Ok(0), (abi::CONSOLE_WRITE, text.as_ptr() as u64, 0));
    gives("call-write", Ok(text.len() as u64), (abi::CONSOLE_WRITE, text.as_ptr() as u64, text.len() as u64));
    gives("call-write-too-much", Err(abi::EINVAL), (abi::CONSOLE_WRITE, 0, abi::CONSOLE_WRITE_MAX + 1));
    gives("call-write-from-nowhere", Err(abi::EFAULT), (abi::CONSOLE_WRITE, 0x8000_0000, 16));
    gives("call-write-from-the-end", Err(abi::EFAULT), (abi::CONSOLE_WRITE, u64::MAX - 3, 16));
    gives("call-write-from-a-device", Err(abi::EFAULT), (abi::CONSOLE_WRITE, 0xfee0_0000, 16));
    let (first, second) = (lamina.clock(), lamina.clock());
    report.check(
        "call-clock-goes-on",
        matches!((first, second), (Ok(first), Ok(second)) if first <= second),
        (first, second),
    );
    // The other vendor's instruction does not exist here.
    if lamina.uses_vmmcall() {
        report.unknown("call-by-vmcall", probe::vmcall());
    } else {
        report.unknown("call-by-vmmcall", probe::vmmcall());
    }
}
