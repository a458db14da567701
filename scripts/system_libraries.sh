#!/usr/bin/env bash
# Headless rendering needs EGL and a driver: on Debian and Ubuntu libegl1 and libgl1-mesa-dri.
# Installs them where that may be done without asking (root, or sudo without a password); elsewhere prints the one
# line to run and stops, before anything long has started.
set -euo pipefail

packages=(libegl1 libgl1-mesa-dri)

present() {
  local libraries
  libraries=$(PATH="$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null || true)
  grep -q 'libEGL\.so\.1' <<<"$libraries" || return 1
  # A driver behind it: Mesa's (found through dpkg or its files) or NVIDIA's.
  grep -q 'libEGL_nvidia\.so' <<<"$libraries" && return 0
  compgen -G '/usr/lib*/dri/*_dri.so' >/dev/null && return 0
  compgen -G '/usr/lib/*/dri/*_dri.so' >/dev/null && return 0
  compgen -G '/usr/lib/*/libgallium*.so' >/dev/null
}

if present; then exit 0; fi

line="apt-get update && apt-get install -y ${packages[*]}"
if ! command -v apt-get >/dev/null; then
  echo "error: headless rendering needs EGL (libEGL.so.1) and a Mesa or NVIDIA driver, and neither is installed." >&2
  echo "Install your distribution's packages for them (Fedora: mesa-libEGL mesa-dri-drivers), then try again." >&2
  exit 1
elif [ "$(id -u)" -eq 0 ]; then
  run=()
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
  run=(sudo -n)
else
  echo "error: headless rendering needs the system packages ${packages[*]}. Run this once, then try again:" >&2
  echo "  sudo sh -c '$line'" >&2
  exit 1
fi

echo "Installing the system packages for headless rendering: ${packages[*]}"
"${run[@]}" apt-get update -qq
DEBIAN_FRONTEND=noninteractive "${run[@]}" apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
present || { echo "error: ${packages[*]} were installed, but libEGL.so.1 or its driver is still not found." >&2; exit 1; }
