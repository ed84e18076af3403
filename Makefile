# What there is to do with this project. `make help` lists it.
#
# Everything works on a fresh Debian 12 with nothing but Rust, git and make: what else is needed is
# installed by the name of its Debian package. Tests make network namespaces, and need root for it:
# as another user, programs are built as that user and only the tests run by sudo.

TARGET := $(or $(CARGO_TARGET_DIR),target)
TOOLS := $(TARGET)/tools
CARGO_DENY := $(TOOLS)/bin/cargo-deny
CARGO_DENY_VERSION := 0.20.2
CARGO_MUTANTS := $(TOOLS)/bin/cargo-mutants
CARGO_MUTANTS_VERSION := 27.1.0
CARGO_CYCLONEDX := $(TOOLS)/bin/cargo-cyclonedx
CARGO_CYCLONEDX_VERSION := 0.5.9
# What `make bench-fire` alone compares with.
LETMEIN := $(TOOLS)/bin/letmeind $(TOOLS)/bin/letmeinfwd
LETMEIN_VERSION := 12.6.2

# Where `make install` puts things; DESTDIR goes before all of it.
DESTDIR ?=
PREFIX ?= /usr
SBINDIR := $(PREFIX)/sbin
BINDIR := $(PREFIX)/bin
UNITDIR := $(PREFIX)/lib/systemd/system
SYSUSERSDIR := $(PREFIX)/lib/sysusers.d
UNITS := $(notdir $(wildcard packaging/*.service packaging/*.socket))
# What the units run of ours beside the programs.
LIBEXECDIR := $(PREFIX)/libexec/spa
NOTIFIERS := $(notdir $(wildcard packaging/notify/*))
DOCDIR := $(PREFIX)/share/doc/spa
MANDIR := $(PREFIX)/share/man
BASHDIR := $(PREFIX)/share/bash-completion/completions
# Debian's zsh looks in vendor-completions below /usr, and in site-functions below /usr/local.
ZSHDIR := $(PREFIX)/share/zsh/$(if $(filter /usr,$(PREFIX)),vendor-completions,site-functions)
FISHDIR := $(PREFIX)/share/fish/vendor_completions.d
COMPLETIONS := spa-client/src/cli/completions
# What is installed of docs/: what who runs it needs without the sources.
PAGES := manual.md installation.md migration.md recovery.md keys.md incidents.md protocol.md
# What they link to and is with the sources alone: installed, they name it.
ELSEWHERE := README|SECURITY|benchmarks|decisions|threat-model

# An error of a test says what went wrong; the way to it through the test runner adds nothing.
export RUST_LIB_BACKTRACE ?= 0
# The tests wait more than they compute.
export RUST_TEST_THREADS ?= 4

ifneq ($(shell id -u),0)
SUDO := sudo -E
HOST := $(shell rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
export CARGO_TARGET_$(HOST)_RUNNER := $(SUDO)
endif

.PHONY: help
help: ## Show this list.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

.PHONY: demo
demo: needs ## Show the main job on real parts: namespaces, firewall, sshd.
	cargo build --locked --workspace --bins
	$(SUDO) $(TARGET)/debug/spa-demo

.PHONY: test
test: needs build lint interop deny sbom doc fuzz-briefly ## Everything that decides about a change.
	SPA_TESTS_BUILT=1 cargo test --locked --workspace
	cargo test --locked -p spa-client --features tokio --test asynchronous
	$(MAKE) --no-print-directory on-clean-debian-as-built

.PHONY: build
build: needs ## The programs, for development.
	cargo build --locked --workspace --bins

.PHONY: lint
lint: needs ## Formatting, clippy, and whether the prefilter is what its source says.
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	spa-server/src/prefilter/build $(TARGET)/prefilter.bpf.o
	cmp $(TARGET)/prefilter.bpf.o spa-server/src/prefilter/prefilter.bpf.o
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked -p spa-client --all-targets --features tokio -- -D warnings

.PHONY: prefilter
prefilter: needs ## The prefilter's program for the kernel, from its source.
	spa-server/src/prefilter/build spa-server/src/prefilter/prefilter.bpf.o

.PHONY: doc
doc: needs ## The documentation of the crates, without a warning.
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --features spa-client/tokio

.PHONY: interop
interop: needs ## The second implementation, and the test vectors checked by it.
	tests/interop/run

.PHONY: vm
vm: needs ## Clock steps and suspend, in a small virtual machine. Takes minutes, is not in `test`.
	@tests/install-needs busybox-static cpio kmod qemu-system-x86
	cargo build --locked --release -p spa-server -p spa-client
	PYTHONDONTWRITEBYTECODE=1 python3 -W error tests/vm/test_judge.py
	tests/vm/run

# What the benchmarks have found, and its copy in the repository, which is where a fresh clone begins.
RESULTS := $(TARGET)/bench/results.json
COMMITTED := docs/benchmarks/results.json
KNOWN = mkdir -p $(dir $(RESULTS)) && { [ ! -e $(COMMITTED) ] || cp -u --remove-destination $(COMMITTED) $(RESULTS); }
REPORT = $(MAKE) bench-report

# All of it anew, so what was known is not looked at, and stays until the last part is there.
.PHONY: bench
bench: ## All benchmarks, and the report of them, docs/benchmarks.md. Minutes, is not in `test`.
	@mkdir -p $(TARGET)/bench && rm -f $(TARGET)/bench/anew.json
	$(MAKE) bench-gate RESULTS=$(TARGET)/bench/anew.json KNOWN= REPORT=
	$(MAKE) bench-fire RESULTS=$(TARGET)/bench/anew.json KNOWN= REPORT=
	$(MAKE) bench-client RESULTS=$(TARGET)/bench/anew.json KNOWN= REPORT=
	mv -f $(TARGET)/bench/anew.json $(RESULTS)
	$(REPORT)

.PHONY: bench-report
bench-report: ## The report, drawn again of what was measured.
	cargo build --locked --release -p spa-tests --bin spa-bench-report
	@$(KNOWN)
	$(TARGET)/release/spa-bench-report $(RESULTS) docs

.PHONY: bench-gate
bench-gate: needs ## What a grant and a packet cost, beside other programs. Part of `bench`.
	@tests/install-needs fwknop-server fwknop-client knockd strace
	cargo build --locked --release -p spa-tests -p spa-server --bin spa-bench --bin spa-server
	@$(KNOWN)
	$(SUDO) $(TARGET)/release/spa-bench --results $(RESULTS)
	$(REPORT)

.PHONY: bench-fire
bench-fire: needs $(LETMEIN) ## How the server does under fire, beside other programs. Minutes, likewise.
	@tests/install-needs fwknop-server fwknop-client knockd
	cargo build --locked --release -p spa-tests -p spa-server --bin spa-bench-fire --bin spa-server
	@$(KNOWN)
	$(SUDO) env SPA_TESTS_BUILT=1 $(TARGET)/release/spa-bench-fire --results $(RESULTS)
	$(REPORT)

.PHONY: bench-micro
bench-micro: needs ## What one datagram costs, step by step.
	cargo bench --locked -p spa-server --bench hot_path

.PHONY: bench-client
bench-client: needs ## What the client costs: its proxy, its knock beside others'. Minutes, likewise.
	@tests/install-needs fwknop-client knockd
	cargo build --locked --release -p spa-tests -p spa-server -p spa-client --bin spa-client-bench --bin spa-server --bin spa-client
	@$(KNOWN)
	$(SUDO) env SPA_TESTS_BUILT=1 $(TARGET)/release/spa-client-bench --results $(RESULTS)
	$(REPORT)

MINUTES ?= 10

.PHONY: fuzz
fuzz: needs ## What comes from outside, fed by libFuzzer. MINUTES (10) for each target, likewise.
	fuzz/run --seconds $$(($(MINUTES) * 60)) $(TARGETS)

.PHONY: fuzz-briefly
fuzz-briefly: needs ## The same for a few seconds each, as a part of `test`.
	fuzz/run --seconds 4

# It works on a copy of the tree, and builds there: what a mutant leaves in a target directory that stays would
# pass for the original the next time.
MUTANTS := $(abspath $(TARGET))/mutants
MUTATE = mkdir -p $(MUTANTS) && PATH="$(abspath $(TOOLS))/bin:$$PATH" env -u CARGO_TARGET_DIR \
	cargo mutants --cargo-arg=--locked --no-times
# What decides who gets in, with the tests of just that: a mutant is to cost seconds.
DECIDES := policy.rs limits.rs grants/table.rs helper/permits.rs helper/warden.rs

.PHONY: mutants
mutants: needs mutants-proto mutants-server ## Small changes of the code, each of which some test is to notice. Hours, likewise.

.PHONY: mutants-proto
mutants-proto: $(CARGO_MUTANTS) ## Of the protocol. Part of `mutants`.
	$(MUTATE) -p spa-proto --all-features --cargo-arg=--lib --cargo-arg=--tests -o $(MUTANTS)/spa-proto

.PHONY: mutants-server
mutants-server: $(CARGO_MUTANTS) ## Of policy, limits, grants, and the helper's judge, likewise.
	$(MUTATE) -p spa-server $(addprefix -f spa-server/src/,$(DECIDES)) --cargo-arg=--lib -o $(MUTANTS)/spa-server \
		-- -- policy:: limits:: grants:: helper:: authorizer::tests::whole

.PHONY: soak
soak: needs ## A server under a mixed load; fails if it misses a knock or grows. MINUTES (10), likewise.
	cargo build --locked --release -p spa-tests -p spa-server --bin spa-soak --bin spa-server
	$(SUDO) env SPA_TESTS_BUILT=1 $(TARGET)/release/spa-soak --minutes $(MINUTES)

.PHONY: deny
deny: $(CARGO_DENY) ## Licences, sources and known faults of what we depend on.
	PATH="$(abspath $(TOOLS))/bin:$$PATH" cargo deny --locked check bans licenses sources
	@if PATH="$(abspath $(TOOLS))/bin:$$PATH" timeout 120 cargo deny --locked fetch db; then \
		PATH="$(abspath $(TOOLS))/bin:$$PATH" cargo deny --locked check advisories; \
	else \
		echo "NOTE: the advisory database can't be had here; advisories were not checked"; \
	fi

$(CARGO_DENY):
	cargo install --quiet cargo-deny@$(CARGO_DENY_VERSION) --locked --root $(TOOLS)

$(CARGO_MUTANTS):
	cargo install --quiet cargo-mutants@$(CARGO_MUTANTS_VERSION) --locked --root $(TOOLS)

# What it writes goes beside each Cargo.toml, and tells where that is on this machine; neither is to
# stay. Of one commit it is always the same.
.PHONY: sbom
sbom: $(CARGO_CYCLONEDX) ## What the programs are built from, in the form of CycloneDX, in target/sbom.
	cargo tree --locked --workspace >/dev/null
	@mkdir -p $(TARGET)/sbom && trap 'rm -f */*.cdx.json' EXIT && \
	export SOURCE_DATE_EPOCH="$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null || date +%s)}" && \
	PATH="$(abspath $(TOOLS))/bin:$$PATH" cargo cyclonedx --quiet --format json --spec-version 1.5 --no-build-deps && \
	for program in spa-server spa-client; do \
		sed 's|file://$(CURDIR)|file://|g' $$program/$$program.cdx.json >$(TARGET)/sbom/$$program.cdx.json && \
		echo $(TARGET)/sbom/$$program.cdx.json || exit 1; \
	done

$(CARGO_CYCLONEDX):
	cargo install --quiet cargo-cyclonedx@$(CARGO_CYCLONEDX_VERSION) --locked --root $(TOOLS)

$(LETMEIN) &:
	cargo install --quiet --locked --root $(TOOLS) $(addsuffix @$(LETMEIN_VERSION),$(notdir $(LETMEIN)))

# They are built apart: nothing of this machine's directories is in them, so that whoever builds the
# same commit elsewhere, with the same compiler, gets the same to the last bit. This needs what a build
# does (build-essential, libpcap-dev), and none of what only tests need. Of two that match, the compiler
# takes the last: cargo's directory may be in this one.
DEB := $(abspath $(TARGET))/deb
CARGO_DIRECTORY := $(abspath $(or $(CARGO_HOME),$(HOME)/.cargo))

.PHONY: deb
deb: ## Debian packages of the server and the client, in target/deb.
	CARGO_TARGET_DIR=$(DEB)/build \
	RUSTFLAGS="$$RUSTFLAGS --remap-path-prefix=$(CURDIR)=/spa --remap-path-prefix=$(CARGO_DIRECTORY)=/cargo" \
		cargo build --release --locked -p spa-server -p spa-client
	@rm -f $(DEB)/*.deb
	packaging/debian/pack $(DEB)/build $(DEB)

# What would be uploaded to Debian closes a bug of theirs; this isn't.
CLEAN := $(abspath $(TARGET))/clean-debian

# What is packed for it: here the programs of a release build, in `test` those that it has built.
PACKAGED := $(DEB)/build
PACKAGES := $(DEB)

.PHONY: test-packages
test-packages: needs deb ## The packages of a release build, by lintian and on a clean Debian. Minutes, likewise.
	@tests/install-needs lintian
	lintian --allow-root --fail-on error,warning --suppress-tags initial-upload-closes-no-bugs $(DEB)/*.deb
	$(MAKE) --no-print-directory on-clean-debian

.PHONY: on-clean-debian
on-clean-debian: # Packages on a clean Debian: installed, upgraded, removed.
	@tests/install-needs debootstrap
	$(SUDO) tests/clean-debian $(CLEAN) $(PACKAGES)/*.deb
	cargo build --locked --workspace --bins
	SPA_TESTS_BUILT=1 SPA_PACKAGED=$(PACKAGED) SPA_CLEAN=$(CLEAN) cargo test --locked --workspace --test clean

.PHONY: on-clean-debian-as-built
on-clean-debian-as-built: PACKAGED := $(abspath $(TARGET))/packaged
on-clean-debian-as-built: build # The same of the programs as they are built for tests.
	@rm -rf $(PACKAGED) && mkdir -p $(PACKAGED)/release
	cp $(TARGET)/debug/spa-server $(TARGET)/debug/spa-client $(PACKAGED)/release
	DEB_COMPRESSION=none packaging/debian/pack $(PACKAGED) $(PACKAGED)
	$(MAKE) --no-print-directory on-clean-debian PACKAGED=$(PACKAGED) PACKAGES=$(PACKAGED)

.PHONY: reproducible
reproducible: ## Whether two builds of this commit in two directories are the same. Minutes, likewise.
	packaging/debian/reproduce $(abspath $(TARGET))/reproducible

.PHONY: needs
needs: ## Install the Debian packages that are missing.
	@tests/install-needs

# It builds nothing, so that it can run as root where Rust is another user's. Nothing in /etc is
# touched: `spa-server init` writes the configuration, and only where there is none.
.PHONY: install
install: ## Install what `cargo build --release` has built. DESTDIR, PREFIX (/usr).
	@for program in spa-server spa-client; do \
		test -x $(TARGET)/release/$$program || { \
			echo "install: $(TARGET)/release/$$program is not there; first, as yourself: cargo build --release --locked -p spa-server -p spa-client" >&2; \
			exit 1; \
		}; \
	done
	install -D -m 755 $(TARGET)/release/spa-server $(DESTDIR)$(SBINDIR)/spa-server
	install -D -m 755 $(TARGET)/release/spa-client $(DESTDIR)$(BINDIR)/spa-client
	install -d -m 755 $(DESTDIR)$(UNITDIR)
	install -m 644 $(addprefix packaging/,$(UNITS)) $(DESTDIR)$(UNITDIR)
	sed -i -e 's|/usr/sbin/spa-server|$(SBINDIR)/spa-server|' -e 's|/usr/libexec/spa|$(LIBEXECDIR)|' $(addprefix $(DESTDIR)$(UNITDIR)/,$(UNITS))
	@for notifier in $(NOTIFIERS); do \
		install -D -m 755 packaging/notify/$$notifier $(DESTDIR)$(LIBEXECDIR)/notify-$$notifier || exit 1; \
	done
	install -D -m 644 packaging/sysusers.conf $(DESTDIR)$(SYSUSERSDIR)/spa-server.conf
	install -D -m 644 packaging/prometheus/alerts.yml $(DESTDIR)$(DOCDIR)/examples/prometheus/alerts.yml
	install -D -m 644 packaging/prometheus/grafana.json $(DESTDIR)$(DOCDIR)/examples/prometheus/grafana.json
	install -D -m 644 packaging/fail2ban/action.d/spa.conf $(DESTDIR)$(DOCDIR)/examples/fail2ban/action.d/spa.conf
	install -D -m 644 packaging/fail2ban/jail.d/spa.conf $(DESTDIR)$(DOCDIR)/examples/fail2ban/jail.d/spa.conf
	sed -i 's|/usr/sbin/spa-server|$(SBINDIR)/spa-server|' $(DESTDIR)$(DOCDIR)/examples/fail2ban/action.d/spa.conf
	install -D -m 644 packaging/server.toml $(DESTDIR)$(DOCDIR)/examples/server.toml
	install -D -m 644 packaging/client.toml $(DESTDIR)$(DOCDIR)/examples/client.toml
	install -D -m 644 spa-client/config.example.toml $(DESTDIR)$(DOCDIR)/examples/config.toml
	install -d -m 755 $(DESTDIR)$(DOCDIR)
	install -m 644 $(addprefix docs/,$(PAGES)) $(DESTDIR)$(DOCDIR)
	sed -i -E 's/\[([^]]*)\]\((\.\.\/)?($(ELSEWHERE))\.md[^)]*\)/\1/g' $(addprefix $(DESTDIR)$(DOCDIR)/,$(PAGES))
	install -D -m 644 $(COMPLETIONS)/spa-client.bash $(DESTDIR)$(BASHDIR)/spa-client
	install -D -m 644 $(COMPLETIONS)/_spa-client $(DESTDIR)$(ZSHDIR)/_spa-client
	install -D -m 644 $(COMPLETIONS)/spa-client.fish $(DESTDIR)$(FISHDIR)/spa-client.fish
	install -d -m 755 $(DESTDIR)$(MANDIR)/man1
	umask 022 && $(TARGET)/release/spa-client man $(DESTDIR)$(MANDIR)/man1
	install -d -m 755 $(DESTDIR)$(MANDIR)/man8
	umask 022 && $(TARGET)/release/spa-server man $(DESTDIR)$(MANDIR)/man8
	@if [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]; then systemd-sysusers && systemctl daemon-reload; fi

# A gate whose program is gone could be taken away by hand only.
.PHONY: uninstall
uninstall: ## Remove what `make install` has installed. Configuration and state stay.
	@if [ -z "$(DESTDIR)" ] && ipset list -n 2>/dev/null | grep -qx spa4; then \
		echo "uninstall: the gate still hides ports; first: systemctl disable --now spa-server; spa-server gate remove" >&2; \
		exit 1; \
	fi
	rm -f $(DESTDIR)$(SBINDIR)/spa-server $(DESTDIR)$(BINDIR)/spa-client
	rm -f $(addprefix $(DESTDIR)$(UNITDIR)/,$(UNITS)) $(DESTDIR)$(SYSUSERSDIR)/spa-server.conf
	rm -f $(addprefix $(DESTDIR)$(LIBEXECDIR)/notify-,$(NOTIFIERS))
	rm -f $(addprefix $(DESTDIR)$(DOCDIR)/examples/,server.toml client.toml config.toml prometheus/alerts.yml prometheus/grafana.json fail2ban/action.d/spa.conf fail2ban/jail.d/spa.conf)
	rm -f $(addprefix $(DESTDIR)$(DOCDIR)/,$(PAGES))
	rm -f $(DESTDIR)$(BASHDIR)/spa-client $(DESTDIR)$(ZSHDIR)/_spa-client $(DESTDIR)$(FISHDIR)/spa-client.fish
	rm -f $(DESTDIR)$(MANDIR)/man1/spa-client.1 $(DESTDIR)$(MANDIR)/man1/spa-client-*.1
	rm -f $(DESTDIR)$(MANDIR)/man8/spa-server.8 $(DESTDIR)$(MANDIR)/man8/spa-server-*.8
	@for directory in $(addprefix $(DESTDIR)$(DOCDIR)/examples/,prometheus fail2ban/action.d fail2ban/jail.d fail2ban) $(DESTDIR)$(DOCDIR)/examples $(DESTDIR)$(DOCDIR) $(DESTDIR)$(LIBEXECDIR); do \
		[ ! -d $$directory ] || rmdir --ignore-fail-on-non-empty $$directory; \
	done
	@if [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi

.PHONY: clean
clean: ## Remove what was built.
	cargo clean
