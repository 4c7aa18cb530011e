#!/usr/bin/env bash
# Installs what the clients of this test need where it is missing: their languages and MariaDB from the distribution
# (needs root), then the clients, from their registries, into .env beside this file. Safe to run again.
set -euo pipefail
cd "$(dirname "$0")"

# command = package that has it
tools=(python3=python3-venv javac=default-jdk-headless mvn=maven mariadbd=mariadb-server-core mariadb-install-db=mariadb-server-core
  my_print_defaults=mariadb-client-core)

missing=()
PATH=$PATH:/usr/sbin
for tool in "${tools[@]}"; do
  command -v "${tool%%=*}" >/dev/null || missing+=("${tool##*=}")
done
# Debian's python3 comes without the part that makes environments with pip in them
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
if ((${#missing[@]})); then
  if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    echo "install.sh: missing here: ${missing[*]}; install them, or run this as root where there is apt-get" >&2
    exit 2
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# up_to_date NAME, FILE: what NAME has was made from FILE as it is now
up_to_date() { cmp -s "$2" ".env/$1.made-from"; }
made() { cp "$2" ".env/$1.made-from"; }
mkdir -p .env

if ! up_to_date python python/requirements.txt; then
  rm -rf .env/python
  python3 -m venv .env/python
  .env/python/bin/pip install --quiet --disable-pip-version-check -r python/requirements.txt
  made python python/requirements.txt
fi

if ! up_to_date java java/pom.xml; then
  rm -rf .env/java
  mvn --quiet --batch-mode --file java/pom.xml \
    org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies -DoutputDirectory="$PWD/.env/java"
  made java java/pom.xml
fi
