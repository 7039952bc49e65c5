# shellcheck shell=bash
# A Compose file with a volume of its own and an external one, on Docker's own driver and on orlop.

compose() { docker compose --progress quiet --file "$work/compose.yaml" "$@"; }

compose_file() { # driver options
    cat >"$work/compose.yaml" <<END
name: shop
services:
  app:
    image: busybox
    network_mode: none
    pull_policy: never
    stop_signal: SIGKILL
    command: sleep 1000000
    volumes: ['data:/data', 'shared:/shared']
volumes:
  data: {driver: $1, driver_opts: $2}
  shared: {external: true}
END
}

composed() { # driver options
    compose_file "$1" "$2"
    refused 'external volume "shared" not found' compose up -d
    docker volume create -d "$1" shared >/dev/null
    compose up -d
    compose exec -T app sh -c 'echo hello | tee /data/file >/shared/file'
    same inspect "$1 shop" "$(docker volume inspect --format '{{.Driver}} {{index .Labels "com.docker.compose.project"}}' shop_data)"
    [[ $1 == local ]] || eventually $((1 << 30)) status_of shop_data size
    refused 'volume is in use' docker volume rm shop_data
    compose down
    same 'volumes after down' $'shared\nshop_data' "$(docker volume ls -q)"
    compose up -d
    same 'data after down and up' 'hello hello' "$(compose exec -T app cat /data/file /shared/file | xargs)"
    compose down -v
    same 'volumes after down -v' shared "$(docker volume ls -q)"
    same 'the external volume' hello "$(run -v shared:/shared busybox cat /shared/file)"
    docker volume rm shared >/dev/null
}

# A volume that has grown is left alone. Compose asks before it recreates one whose options have changed in the file; the old one is
# removed by its policy.
recreated() {
    compose_file orlop '{size: 1g, ondelete: trash}'
    docker volume create shared >/dev/null
    compose up -d
    compose exec -T app sh -c 'echo hello >/data/file'
    "$orlop_bin" expand shop_data 1536M --pool "default=$work/pool" >/dev/null
    compose up -d </dev/null >/dev/null
    eventually $((1536 << 20)) status_of shop_data size
    compose_file orlop '{size: 2g, ondelete: trash}'
    compose up -d </dev/null >/dev/null
    same 'data without an answer' hello "$(compose exec -T app cat /data/file)"
    compose up -d --yes
    eventually $((2 << 30)) status_of shop_data size
    same 'the new volume' '' "$(compose exec -T app ls /data)"
    same 'the old data' hello "$(find "$work/pool/trash" -path '*/shop_data.*/data/file' -exec cat {} +)"
    compose down -v
    docker volume rm shared >/dev/null
}

case_compose() {
    composed local '{}'
    composed orlop '{size: 1g}'
    recreated
    same 'nothing is left' '' "$("$orlop_bin" ls -q --pool "default=$work/pool")"
}
