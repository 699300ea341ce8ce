//! Task switches, which no processor does in a guest: the instruction or event that asked for one is finished in
//! software (SDM vol. 3, "Treatment of Task Switches"; APM vol. 2, "Task Switch Intercept").

use alloc::string::String;
use lamina_arch::event::{Event, EventKind, GuestFault, vector};
use lamina_arch::exit::TaskSource;
use lamina_arch::regs::SysReg;

use super::Resume;
use super::emulate::{self, Cause};
use crate::chipset::Chipset;
use crate::host::Host;
use crate::insn::task::{self, Task};
use crate::insn::{self, Refused};
use crate::vcpu::Vcpu;
use crate::vm::Vm;

/// DR6.BT: the new task's TSS asked for a debug trap.
const TASK_SWITCHED: u64 = 1 << 15;

/// Switches to the task whose TSS `selector` names, or the link in the current TSS. What asked for it, where it was an event, has then been delivered.
pub fn switch<H: Host, C: Chipset>(
    vm: &mut Vm<H::Vcpu, C>,
    host: &mut H,
    selector: Option<u16>,
    source: TaskSource,
) -> Resume {
    let event = if source == TaskSource::Gate { vm.vcpu.interrupted_event() } else { None };
    // A processor that gives no event for a task gate means an INT n or its like, which it would execute again.
    let by_instruction = event.is_none_or(|event| is_software(&event));
    let rip = vm.vcpu.read(SysReg::Rip);
    let mut processor = emulate::processor(vm, host, Cause::Undescribed);
    let mut length = 0;
    if by_instruction {
        let fetched = insn::fetch(&mut processor);
        match fetched.instruction {
            Ok(instruction) => length = insn::length(&instruction),
            Err(Refused::Fault(fault)) => return Resume::Inject(fault),
            Err(_) => {
                let why = String::from("a task switch by an instruction that cannot be read");
                return Resume::Stop(emulate::not_emulated(&fetched, why));
            }
        }
    }
    let selector = match selector.map_or_else(|| task::link(&mut processor), Ok) {
        Ok(selector) => selector,
        Err(fault) => return Resume::Inject(fault),
    };
    let task = Task {
        selector,
        source,
        next_ip: rip.wrapping_add(u64::from(length)),
        external: event.is_some_and(|event| !is_software(&event)),
        error: event.and_then(|event| event.error),
    };
    let switched = task::switch(&mut processor, &task);
    drop(processor);
    match switched {
        Ok(debug) => {
            vm.vcpu.end_shadow();
            match (source, event) {
                (TaskSource::Iret, _) => vm.vcpu.set_nmi_blocked(false),
                (_, Some(Event { kind: EventKind::Nmi, .. })) => vm.vcpu.set_nmi_blocked(true),
                _ => {}
            }
            if debug {
                let dr6 = vm.vcpu.read(SysReg::Dr6);
                vm.vcpu.write(SysReg::Dr6, dr6 | TASK_SWITCHED);
                return Resume::InjectAfter(GuestFault { vector: vector::DB, error: None, cr2: None });
            }
            Resume::Delivered
        }
        Err(fault) => Resume::Inject(fault),
    }
}

const fn is_software(event: &Event) -> bool {
    matches!(
        event.kind,
        EventKind::SoftwareInterrupt | EventKind::SoftwareException | EventKind::PrivilegedSoftwareException
    )
}
