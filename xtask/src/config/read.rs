//! From TOML's tables to a checked [`Config`].

use std::path::Path;

use lamina_vmm::config::{
    Apic, CPU_HOST, FW_CFG_NAME_MAX, LogLevel, MEMORY_MAX, Mitigations, WEIGHT_MAX, validate_name,
};
use lamina_vmm::cpu_model::{MODELS, Model};
use lamina_vmm::memory::Backing;
use lamina_vmm::trace::RECORDS_MAX;
use toml::{Table, Value};

use super::{Boot, Config, ConfigError, DEFAULT_MEMORY, DEFAULT_WEIGHT, Module, Source, Vga, Vm, size};
use crate::paths;
use crate::setup::debian::{ARCHITECTURES, Package};

/// The granularity of guest memory. Unit: bytes.
const PAGE: u64 = 4096;

/// Debian's package of SeaBIOS, its ROM and the BIOS of a VGA without anything beyond.
const SEABIOS: &str = "seabios";
const SEABIOS_ROM: &str = "bios-256k.bin";
const SEABIOS_VGA_ROM: &str = "vgabios-isavga.bin";

/// One table with the name under which messages speak of it. Keys are taken out; what is left at the end is unknown.
struct Section<'a> {
    file: &'a str,
    name: String,
    table: Table,
    known: Vec<&'static str>,
}

impl<'a> Section<'a> {
    fn new(file: &'a str, name: String, table: Table) -> Self {
        Self { file, name, table, known: Vec::new() }
    }

    fn key(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}: {key}", self.name) }
    }

    fn refuse(&self, key: &str, value: impl std::fmt::Display, reason: impl Into<String>) -> ConfigError {
        let (file, key) = (self.file.to_owned(), self.key(key));
        ConfigError::Refused { file, key, value: value.to_string(), reason: reason.into() }
    }

    fn missing(&self, key: &str, reason: &str) -> ConfigError {
        ConfigError::Missing { file: self.file.to_owned(), key: self.key(key), reason: reason.to_owned() }
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.table.remove(key)
    }

    fn text(&mut self, key: &'static str) -> Result<Option<String>, ConfigError> {
        match self.take(key) {
            None => Ok(None),
            // A NUL would end the string early in the guest, and so hide its rest from whoever reads the file.
            Some(Value::String(text)) if text.contains('\0') => {
                Err(self.refuse(key, Value::String(text), "holds a NUL character"))
            }
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.refuse(key, other, "must be a string")),
        }
    }

    fn flag(&mut self, key: &'static str) -> Result<bool, ConfigError> {
        match self.take(key) {
            None => Ok(false),
            Some(Value::Boolean(flag)) => Ok(flag),
            Some(other) => Err(self.refuse(key, other, "must be true or false")),
        }
    }

    fn count(&mut self, key: &'static str, default: u32, max: u32) -> Result<u32, ConfigError> {
        match self.take(key) {
            None => Ok(default),
            Some(Value::Integer(number)) => match u32::try_from(number) {
                Ok(number) if (1..=max).contains(&number) => Ok(number),
                _ => Err(self.refuse(key, number, format!("must be from 1 to {max}"))),
            },
            Some(other) => Err(self.refuse(key, other, "must be a whole number")),
        }
    }

    fn tables(&mut self, key: &'static str) -> Result<Vec<Table>, ConfigError> {
        let wrong = "must be a list of tables";
        match self.take(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(values)) => values
                .into_iter()
                .map(|value| match value {
                    Value::Table(table) => Ok(table),
                    other => Err(self.refuse(key, other, wrong)),
                })
                .collect(),
            Some(other) => Err(self.refuse(key, other, wrong)),
        }
    }

    fn not_yet(&mut self, keys: &[&'static str]) -> Result<(), ConfigError> {
        for key in keys {
            if let Some(value) = self.take(key) {
                return Err(self.refuse(key, value, "not supported yet"));
            }
        }
        Ok(())
    }

    /// What was not taken is unknown.
    fn finish(self) -> Result<(), ConfigError> {
        match self.table.iter().next() {
            None => Ok(()),
            Some((key, value)) => {
                let reason = format!("unknown key; known here: {}", self.known.join(", "));
                Err(self.refuse(key, value, reason))
            }
        }
    }
}

pub(super) fn config(text: &str, file: &str, base: &Path) -> Result<Config, ConfigError> {
    let table: Table = toml::from_str(text).map_err(|error| ConfigError::Syntax {
        file: file.to_owned(),
        reason: error.to_string().trim_end().to_owned(),
    })?;
    let mut top = Section::new(file, String::new(), table);
    let (log, mitigations) = match top.take("lamina") {
        None => (LogLevel::Info, Mitigations::Auto),
        Some(Value::Table(table)) => lamina(Section::new(file, "[lamina]".to_owned(), table))?,
        Some(other) => return Err(top.refuse("lamina", other, "must be a table: [lamina]")),
    };
    let tables = top.tables("vm")?;
    if tables.is_empty() {
        return Err(top.missing("vm", "at least one [[vm]] table"));
    }
    let mut vms: Vec<Vm> = Vec::with_capacity(tables.len());
    for (index, table) in tables.into_iter().enumerate() {
        let vm = vm(file, index, table, base)?;
        if vms.iter().any(|other| other.name == vm.name) {
            return Err(ConfigError::Refused {
                file: file.to_owned(),
                key: format!("[[vm]] number {}: name", index + 1),
                value: Value::String(vm.name).to_string(),
                reason: "another VM has this name".to_owned(),
            });
        }
        vms.push(vm);
    }
    top.finish()?;
    Ok(Config { file: file.to_owned(), log, mitigations, vms })
}

fn lamina(mut section: Section<'_>) -> Result<(LogLevel, Mitigations), ConfigError> {
    let level = match section.text("log")?.as_deref() {
        Some("error") => LogLevel::Error,
        Some("warn") => LogLevel::Warn,
        None | Some("info") => LogLevel::Info,
        Some("debug") => LogLevel::Debug,
        Some("trace") => LogLevel::Trace,
        Some(other) => {
            let value = Value::String(other.to_owned());
            return Err(section.refuse("log", value, "must be one of: error, warn, info, debug, trace"));
        }
    };
    let mitigations = match section.text("mitigations")?.as_deref() {
        None | Some("auto") => Mitigations::Auto,
        Some("off") => Mitigations::Off,
        Some("full") => Mitigations::Full,
        Some(other) => {
            let reason = "must be \"auto\" (what the processor asks for), \"off\" or \"full\" (all that it can do)";
            return Err(section.refuse("mitigations", Value::String(other.to_owned()), reason));
        }
    };
    section.finish()?;
    Ok((level, mitigations))
}

fn vm(file: &str, index: usize, table: Table, base: &Path) -> Result<Vm, ConfigError> {
    let mut section = Section::new(file, format!("[[vm]] number {}", index + 1), table);
    let name = section.text("name")?.ok_or_else(|| section.missing("name", "every VM has a name"))?;
    if let Err(error) = validate_name(&name) {
        return Err(section.refuse("name", Value::String(name), error.to_string()));
    }
    section.name = format!("[[vm]] {name:?}");

    section.not_yet(&["disk"])?;
    let boot = boot(&mut section, base)?;
    let initrd = match (section.text("initrd")?, &boot) {
        (None, _) => None,
        (Some(text), Boot::Firmware(_)) => return Err(not_with_firmware(&section, "initrd", Value::String(text))),
        // Its programs are for the kernel that it is given to.
        (Some(text), Boot::Kernel(kernel)) if text == "builtin:busybox" => Some(Source::Busybox(architecture(kernel))),
        (Some(text), _) => Some(source(&section, "initrd", &text, base, &["builtin"])?),
    };
    let mut modules = Vec::new();
    for table in section.tables("modules")? {
        let mut module = Section::new(file, format!("{}: modules", section.name), table);
        let path = module.text("path")?.ok_or_else(|| module.missing("path", "the module's file"))?;
        let source = source(&module, "path", &path, base, &[])?;
        let cmdline = module.text("cmdline")?.unwrap_or_default();
        module.finish()?;
        modules.push(Module { source, cmdline });
    }
    let cmdline = section.text("cmdline")?.unwrap_or_default();
    if let Boot::Firmware(_) = boot {
        if let Some(module) = modules.first() {
            return Err(not_with_firmware(&section, "modules: path", module.source.to_string()));
        }
        if !cmdline.is_empty() {
            return Err(not_with_firmware(&section, "cmdline", Value::String(cmdline)));
        }
    }
    let vm = Vm {
        name,
        initrd,
        modules,
        cmdline,
        memory: memory(&mut section)?,
        backing: backing(&mut section)?,
        vcpus: section.count("vcpus", 1, u32::MAX)?,
        weight: section.count("weight", DEFAULT_WEIGHT, WEIGHT_MAX)?,
        cpu: section.text("cpu")?.unwrap_or_else(|| CPU_HOST.to_owned()),
        apic: apic(&mut section)?,
        cdrom: cdrom(&mut section, base)?,
        vga: vga(&mut section, &boot, base)?,
        hpet: section.flag("hpet")?,
        fw_cfg: fw_cfg(&mut section, &boot)?,
        trace: section.count("trace", 0, RECORDS_MAX)?,
        boot,
    };
    if vm.vcpus != 1 {
        return Err(section.refuse("vcpus", vm.vcpus, "not supported yet: a VM has one processor for now"));
    }
    if Model::by_name(&vm.cpu).is_none() {
        let names: Vec<_> = MODELS.iter().map(|model| model.name).collect();
        return Err(section.refuse("cpu", Value::String(vm.cpu), format!("must be one of {}", names.join(", "))));
    }
    section.finish()?;
    Ok(vm)
}

fn apic(section: &mut Section<'_>) -> Result<Option<Apic>, ConfigError> {
    match section.text("apic")?.as_deref() {
        None => Ok(None),
        Some("virtualized") => Ok(Some(Apic::Virtualized)),
        Some("emulated") => Ok(Some(Apic::Emulated)),
        Some(other) => {
            let reason = "must be \"virtualized\" (by the processor, where it can) or \"emulated\"";
            Err(section.refuse("apic", Value::String(other.to_owned()), reason))
        }
    }
}

fn backing(section: &mut Section<'_>) -> Result<Backing, ConfigError> {
    match section.text("backing")?.as_deref() {
        None | Some("eager") => Ok(Backing::Eager),
        Some("lazy") => Ok(Backing::Lazy),
        Some(other) => {
            let reason = "must be \"eager\" (all at the start) or \"lazy\" (each page when it is first touched)";
            Err(section.refuse("backing", Value::String(other.to_owned()), reason))
        }
    }
}

/// `kernel` or `firmware`.
fn boot(section: &mut Section<'_>, base: &Path) -> Result<Boot, ConfigError> {
    match (section.text("kernel")?, section.text("firmware")?) {
        (Some(kernel), None) => Ok(Boot::Kernel(source(section, "kernel", &kernel, base, &["debian", "guest"])?)),
        (None, Some(firmware)) => {
            let source = source(section, "firmware", &firmware, base, &["debian"])?;
            Ok(Boot::Firmware(file_of_seabios(section, "firmware", source, SEABIOS_ROM)?))
        }
        (Some(_), Some(firmware)) => {
            let reason = "there is a kernel, too: a VM starts with the one or the other";
            Err(section.refuse("firmware", Value::String(firmware), reason))
        }
        (None, None) => {
            let forms = "or firmware: a path, \"debian:PACKAGE\" or (kernel only) \"guest:NAME\"";
            Err(section.missing("kernel", forms))
        }
    }
}

fn not_with_firmware(section: &Section<'_>, key: &str, value: impl std::fmt::Display) -> ConfigError {
    section.refuse(key, value, "not with firmware, which finds what it boots by itself, on a cdrom for example")
}

/// Which file of a package is meant where none is named: only SeaBIOS's is known.
fn file_of_seabios(section: &Section<'_>, key: &str, source: Source, file: &str) -> Result<Source, ConfigError> {
    match source {
        Source::Debian { package, file: None } if package.name == SEABIOS => {
            Ok(Source::Debian { package, file: Some(file.to_owned()) })
        }
        Source::Debian { file: None, .. } => {
            Err(section.refuse(key, &source, "name the file: \"debian:PACKAGE/FILE\""))
        }
        source => Ok(source),
    }
}

/// `cdrom`: an image, or what GRUB is to find on one.
fn cdrom(section: &mut Section<'_>, base: &Path) -> Result<Option<Source>, ConfigError> {
    match section.take("cdrom") {
        None => Ok(None),
        Some(Value::String(text)) => source(section, "cdrom", &text, base, &["debian"]).map(Some),
        Some(Value::Table(table)) => rescue(section, table, base).map(Some),
        Some(other) => Err(section.refuse("cdrom", other, "must be a path, or a table with grub and files")),
    }
}

fn rescue(section: &Section<'_>, table: Table, base: &Path) -> Result<Source, ConfigError> {
    let mut cd = Section::new(section.file, format!("{}: cdrom", section.name), table);
    let menu = cd.text("grub")?.ok_or_else(|| cd.missing("grub", "the text of its grub.cfg"))?;
    let listed = match cd.take("files") {
        None => Table::new(),
        Some(Value::Table(table)) => table,
        Some(other) => return Err(cd.refuse("files", other, "must be a table: \"path on the CD\" = \"source\"")),
    };
    let mut files = Vec::new();
    for (path, value) in listed {
        let key = format!("files: {path:?}");
        let Value::String(text) = value else { return Err(cd.refuse(&key, value, "must be a string")) };
        if path.split('/').any(|part| ["", ".", ".."].contains(&part)) || path.contains('\0') {
            return Err(cd.refuse(&key, Value::String(text), "not a path on a CD, like \"boot/linux\""));
        }
        files.push((path, source(&cd, &key, &text, base, &["debian", "guest", "builtin"])?));
    }
    cd.finish()?;
    Ok(Source::Rescue { menu, files })
}

/// `fw_cfg`: files for firmware. A number is 8 bytes, as SeaBIOS reads them.
fn fw_cfg(section: &mut Section<'_>, boot: &Boot) -> Result<Vec<(String, Vec<u8>)>, ConfigError> {
    let table = match section.take("fw_cfg") {
        None => return Ok(Vec::new()),
        Some(Value::Table(table)) => table,
        Some(other) => return Err(section.refuse("fw_cfg", other, "must be a table: \"name\" = number or string")),
    };
    if let Boot::Kernel(_) = boot {
        return Err(section.refuse("fw_cfg", Value::Table(table), "only firmware asks for files"));
    }
    let mut files = Vec::new();
    for (name, value) in table {
        let key = format!("fw_cfg: {name:?}");
        if name.is_empty() || name.len() > FW_CFG_NAME_MAX || name.contains('\0') {
            return Err(section.refuse(&key, value, format!("a name has 1 to {FW_CFG_NAME_MAX} bytes")));
        }
        let bytes = match value {
            Value::Integer(number) if number >= 0 => number.to_le_bytes().to_vec(),
            Value::String(text) => text.into_bytes(),
            other => return Err(section.refuse(&key, other, "must be a number from 0 on or a string")),
        };
        files.push((name, bytes));
    }
    Ok(files)
}

/// `vga`: whether there is one, or the BIOS of one.
fn vga(section: &mut Section<'_>, boot: &Boot, base: &Path) -> Result<Option<Vga>, ConfigError> {
    match (section.take("vga"), boot) {
        (None | Some(Value::Boolean(false)), _) => Ok(None),
        (Some(Value::Boolean(true)), Boot::Kernel(_)) => Ok(Some(Vga { bios: None })),
        (Some(Value::Boolean(true)), Boot::Firmware(_)) => {
            let file = Some(SEABIOS_VGA_ROM.to_owned());
            Ok(Some(Vga { bios: Some(Source::Debian { package: Package::amd64(SEABIOS), file }) }))
        }
        (Some(Value::String(text)), Boot::Firmware(_)) => {
            let source = source(section, "vga", &text, base, &["debian"])?;
            Ok(Some(Vga { bios: Some(file_of_seabios(section, "vga", source, SEABIOS_VGA_ROM)?) }))
        }
        (Some(value @ Value::String(_)), Boot::Kernel(_)) => {
            Err(section.refuse("vga", value, "a VGA BIOS is for firmware; without, only true or false"))
        }
        (Some(other), _) => Err(section.refuse("vga", other, "must be true, false or a VGA BIOS")),
    }
}

fn memory(section: &mut Section<'_>) -> Result<u64, ConfigError> {
    let (bytes, value) = match section.take("memory") {
        None => return Ok(DEFAULT_MEMORY),
        Some(Value::String(text)) => (size::parse(&text), Value::String(text)),
        Some(Value::Integer(number)) => (u64::try_from(number).ok(), Value::Integer(number)),
        Some(other) => (None, other),
    };
    match bytes {
        None => Err(section.refuse("memory", value, "not a size; like \"256M\" or \"1G\" (K, M, G, T)")),
        Some(0) => Err(section.refuse("memory", value, "a VM needs memory")),
        Some(bytes) if !bytes.is_multiple_of(PAGE) => {
            Err(section.refuse("memory", value, "not a multiple of 4K, the size of a page"))
        }
        Some(bytes) if bytes > MEMORY_MAX => {
            let reason = format!("more than {}, which is the most", size::format(MEMORY_MAX));
            Err(section.refuse("memory", value, reason))
        }
        Some(bytes) => Ok(bytes),
    }
}

/// Reads where bytes come from. `schemes` are the prefixes that this key takes, besides a plain path.
fn source(section: &Section<'_>, key: &str, text: &str, base: &Path, schemes: &[&str]) -> Result<Source, ConfigError> {
    let refuse = |reason: String| Err(section.refuse(key, Value::String(text.to_owned()), reason));
    if let Some((scheme, rest)) = text.split_once(':') {
        if !schemes.contains(&scheme) {
            let known: Vec<_> = schemes.iter().map(|scheme| format!(", {scheme}:…")).collect();
            return refuse(format!("{scheme:?} is not taken here; a path{}", known.concat()));
        }
        return match scheme {
            "debian" => debian(rest).or_else(refuse),
            "guest" if guests().iter().any(|guest| guest == rest) => Ok(Source::Guest(rest.to_owned())),
            "guest" => refuse(format!("no such guest program; there are: {}", guests().join(", "))),
            _ => builtin(rest).or_else(refuse),
        };
    }
    let path = base.join(text);
    match std::fs::metadata(&path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return refuse(format!("{} is not a file", path.display())),
        Err(error) => return refuse(format!("{}: {error}", path.display())),
    }
    match std::path::absolute(&path) {
        Ok(path) => Ok(Source::File(path)),
        Err(error) => refuse(error.to_string()),
    }
}

/// `PACKAGE[:ARCHITECTURE][/FILE]`.
fn debian(text: &str) -> Result<Source, String> {
    let (package, file) = match text.split_once('/') {
        Some((package, file)) => (package, Some(file)),
        None => (text, None),
    };
    let (name, architecture) = with_architecture(package)?;
    if !is_package_name(name) {
        return Err(format!("{name:?} is not the name of a Debian package"));
    }
    if let Some(file) = file
        && !file.split('/').all(|part| !["", ".", ".."].contains(&part))
    {
        return Err(format!("{file:?} is not the end of a path in a package"));
    }
    let package = Package { name: name.to_owned(), architecture };
    Ok(Source::Debian { package, file: file.map(str::to_owned) })
}

/// `busybox[:ARCHITECTURE]`.
fn builtin(text: &str) -> Result<Source, String> {
    match with_architecture(text)? {
        ("busybox", architecture) => Ok(Source::Busybox(architecture)),
        _ => Err("no such built-in initramfs; there is: busybox".to_owned()),
    }
}

/// What stands before a `:`, and the architecture behind it.
fn with_architecture(text: &str) -> Result<(&str, &'static str), String> {
    let (name, architecture) = text.split_once(':').unwrap_or((text, ARCHITECTURES[0]));
    match ARCHITECTURES.into_iter().find(|known| *known == architecture) {
        Some(architecture) => Ok((name, architecture)),
        None => Err(format!("{architecture:?} is no architecture of guests: {}", ARCHITECTURES.join(", "))),
    }
}

/// The architecture of a kernel's programs, as far as its source tells.
fn architecture(kernel: &Source) -> &'static str {
    match kernel {
        Source::Debian { package, .. } => package.architecture,
        _ => ARCHITECTURES[0],
    }
}

/// Debian Policy, "Source" (and "Package"): lower-case letters, digits, plus, minus and full stop, at least two.
fn is_package_name(name: &str) -> bool {
    name.len() >= 2
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte))
}

/// The programs of `guest/`: its directories that are crates, but for the runtime that they share.
fn guests() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(paths::workspace().join("guest")) else { return Vec::new() };
    let mut names: Vec<_> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.path().join("Cargo.toml").is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name != "rt")
        .collect();
    names.sort();
    names
}
