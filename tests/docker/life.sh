# shellcheck shell=bash
# The life of volumes: the same commands and assertions on both engines, on orlop and on the driver of the engine itself.

# What Podman does differently is in functions of its name.
life() { # engine driver
    local engine=$1 driver=$2
    life_of_a_name
    life_with_containers
    life_of_backups
    life_with_options
    same rm $'data\nrestored\nseeded' "$(volume rm data restored seeded)"
    refused 'o such volume' volume inspect data
    same 'nothing is left' '' "$(volume ls -q)"
    "anonymous_$engine"
    same 'nothing is left' '' "$(volume ls -q)"
}

volume() { "$engine" volume "$@"; }
run_in() { "$engine" run --rm --network none "$@"; }
create() { volume create --driver "$driver" "$@"; }
remove_container() { # name
    local grace=()
    [[ $engine == docker ]] || grace=(-t 0)
    "$engine" rm -f "${grace[@]}" "$1" >/dev/null
}

life_of_a_name() {
    same create data "$(create --label app=shop data)"
    "again_$engine"
    same ls data "$(volume ls -q)"
    same 'ls by driver' "$driver data" "$(volume ls -f "driver=$driver" --format '{{.Driver}} {{.Name}}')"
    same 'ls by another driver' '' "$(volume ls -q -f driver=other)"
    same 'ls by label' data "$(volume ls -q -f label=app=shop)"
    same 'ls by another label' '' "$(volume ls -q -f label=app=other)"
    same 'ls by name' data "$(volume ls -q -f name=dat)"
    same inspect "$driver local shop" "$(volume inspect --format '{{.Driver}} {{.Scope}} {{index .Labels "app"}}' data)"
}
again_docker() { same 'create again' data "$(create data)"; }
again_podman() { refused 'already exists' create data; }

life_with_containers() {
    local container
    run_in -v data:/data busybox sh -c 'echo hello >/data/file'
    same 'read by another container' hello "$(run_in -v data:/data busybox cat /data/file)"
    refused 'Read-only file system' run_in -v data:/data:ro busybox touch /data/other
    same 'read by --mount' hello "$(run_in --mount type=volume,source=data,target=/data busybox cat /data/file)"
    refused 'Read-only file system' run_in --mount type=volume,source=data,target=/data,ro busybox touch /data/other
    [[ $engine == podman ]] || made_by_mount
    container=$("$engine" run -d --network none -v data:/data busybox sleep 1000000)
    refused "$(in_use_by "$engine")" volume rm data
    same 'volumes-from' hello "$(run_in --volumes-from "$container" busybox cat /data/file)"
    "$engine" cp "$container:/data/file" "$work/copied"
    same cp hello "$(cat "$work/copied")"
    echo changed >"$work/copied"
    "$engine" cp "$work/copied" "$container:/data/file"
    same 'cp into a running container' changed "$("$engine" exec "$container" cat /data/file)"
    same 'not dangling' '' "$(volume ls -q -f dangling=true)"
    remove_container "$container"
    same dangling data "$(volume ls -q -f dangling=true)"
    create seeded >/dev/null
    same 'an empty volume gets the files of the image' 'from the image' "$(run_in -v seeded:/seed busybox cat /seed/hello)"
}

# Podman's --mount does not name a driver.
made_by_mount() {
    run_in --mount "type=volume,source=made,target=/data,volume-driver=$driver,volume-label=app=shop" busybox touch /data/file
    same 'a volume made by --mount' "$driver shop" "$(volume inspect --format '{{.Driver}} {{index .Labels "app"}}' made)"
    volume rm made >/dev/null
}
in_use_by() { [[ $1 == docker ]] && echo 'volume is in use' || echo 'volume is being used'; }

life_of_backups() {
    run_in -v data:/data -v "$work/backup:/backup" busybox tar czf /backup/data.tar.gz /data
    create restored >/dev/null
    run_in -v restored:/data -v "$work/backup:/backup" busybox tar xzf /backup/data.tar.gz -C /
    same 'backup and restore' changed "$(run_in -v restored:/data busybox cat /data/file)"
    [[ $engine == docker ]] || export_and_import
}

# Options of either driver, and labels, as `inspect` shows them.
life_with_options() {
    local options=(-o type=tmpfs -o device=tmpfs -o o=mode=0700) key=o value=mode=0700
    [[ $driver == local ]] || options=(-o size=1g) key=size value=1g
    create "${options[@]}" --label app=shop --label tier=db sized >/dev/null
    same 'an option' "$value" "$(volume inspect --format "{{index .Options \"$key\"}}" sized)"
    same 'labels' 'shop db' "$(volume inspect --format '{{index .Labels "app"}} {{index .Labels "tier"}}' sized)"
    run_in -v sized:/data busybox touch /data/file
    refused option create -o colour=red other
    volume rm sized >/dev/null
}

anonymous_docker() {
    docker run --network none --volume-driver "$driver" -v /x --name anonymous busybox touch /x/file
    same 'an anonymous volume' 64 "$(volume ls -q | tr -d '\n' | wc -c)"
    [[ $driver == local ]] || is_labelled "$(volume ls -q)"
    docker rm -v anonymous >/dev/null
    run_in --volume-driver "$driver" -v /x busybox true
    same 'anonymous volumes are removed' '' "$(volume ls -q)"
    # Without a name, but with options.
    [[ $driver == local ]] || unnamed -o size=1g
}

# Podman's own anonymous volumes are always of its own driver: `run` and `create` have no flag for another one.
anonymous_podman() {
    if [[ $driver == local ]]; then
        podman run --network none -v /x --name anonymous busybox touch /x/file
        same 'an anonymous volume' 64 "$(volume ls -q | tr -d '\n' | wc -c)"
        podman rm -v anonymous >/dev/null
        run_in -v /x busybox true
    else
        refused 'unknown flag: --volume-driver' podman run --volume-driver "$driver" -v /x busybox true
        unnamed
        unnamed -o size=1g
    fi
    same 'anonymous volumes are removed' '' "$(volume ls -q)"
    create pruned >/dev/null
    create used >/dev/null
    podman run --network none -v used:/x --name user busybox true
    same 'volume prune' pruned "$(podman volume prune --force)"
    same 'a volume with a container' used "$(volume ls -q)"
    podman rm -v user >/dev/null
    volume rm used >/dev/null
}

# A volume whose name the engine makes is anonymous, and `orlop prune` removes it, but none with a name and none in use.
unnamed() { # option...
    local name
    name=$(create "$@")
    is_labelled "$name"
    create named >/dev/null
    "$engine" run --network none -d --name user -v "$name:/x" busybox sleep 1000000 >/dev/null
    prune_by_command
    same 'an anonymous volume in use' 2 "$(volume ls -q | wc -l)"
    remove_container user
    prune_by_command
    [[ ! -e $work/pool/volumes/$name && -e $work/pool/volumes/named ]] || fail 'orlop prune: the wrong volumes are left'
    # What the engine remembers of it, it asks orlop for at its next start.
    "forget_$engine" "$name"
    volume rm named >/dev/null
}
forget_docker() { docker volume rm --force "$1" >/dev/null; }
forget_podman() {
    podman volume reload >/dev/null
    refused 'o such volume' podman volume inspect "$1"
}
prune_by_command() { "$orlop_bin" prune --force --pool "default=$work/pool" >/dev/null; }

is_labelled() { # name
    same 'the name of an anonymous volume' 64 "${#1}"
    same 'its label' '' "$(record "$1" com.docker.volume.anonymous)"
}

# Podman's own verbs for archives.
export_and_import() {
    local container
    if [[ $driver != local ]]; then
        refused 'volume is not mounted' volume export data --output "$work/backup/data.tar"
        refused 'volume is not mounted' volume import restored "$work/copied"
        container=$(podman run -d --network none -v data:/data -v restored:/restored busybox sleep 1000000)
    fi
    podman volume export data --output "$work/backup/data.tar"
    same export changed "$(tar -xOf "$work/backup/data.tar" file)"
    rm -f "$work/backup/data.tar.gz"
    podman run --rm --network none -v restored:/restored busybox rm /restored/file
    podman volume import restored "$work/backup/data.tar"
    same import changed "$(run_in -v restored:/data busybox cat /data/file)"
    [[ -z ${container-} ]] || remove_container "$container"
}

case_local() { life docker local; }
case_orlop() { life docker orlop; }
