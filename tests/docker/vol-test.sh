# shellcheck shell=bash
# The cases of khudgins/vol-test, with which volume plugins for Docker were certified. Its second node is Podman here, served
# by a second process of orlop on the same pool.

second_orlop=

start_second_orlop() {
    "$orlop_bin" serve --pool "default=$work/pool" --docker "unix://$work/second.sock" --docker-mounts "$work/second-mounts" \
        --known-pools "$work/second-known-pools" --docker-shares "$work/second-shares" --node-id second \
        2>>"$work/second.log" &
    second_orlop=$!
    within 120 grep -q 'serving volumes to Docker' "$work/second.log"
}

# Starts the container `mounter`, which keeps the volume mounted.
start_mounter() { # engine [flag...]
    "$1" run -d --name mounter --network none "${@:2}" -v testvol:/data busybox sleep 1000000 >/dev/null
}

stop_mounter() { # engine
    "$1" stop -t 0 mounter >/dev/null
    "$1" rm mounter >/dev/null
}

data_is_there() { # engine
    same 'the text' testdata "$("$1" exec mounter cat /data/foo.txt)"
    same 'the checksum' '/data/random: OK' "$("$1" exec mounter md5sum -c /data/checksum)"
}

case_voltest() {
    same create testvol "$(docker volume create --driver orlop testvol)"
    contains ls "$(docker volume ls)" testvol
    contains inspect "$(docker volume inspect testvol)" '"Driver": "orlop"'
    start_mounter docker
    docker exec mounter sh -c 'echo testdata >/data/foo.txt'
    docker exec mounter dd if=/dev/urandom of=/data/random bs=10M count=1 2>/dev/null
    docker exec mounter sh -c 'md5sum /data/random >/data/checksum'
    data_is_there docker
    stop_mounter docker
    start_mounter docker
    data_is_there docker
    stop_mounter docker

    start_second_orlop
    configure_podman "$work/second.sock"
    make_image podman
    within 60 reloaded testvol
    start_mounter podman
    data_is_there podman
    refused 'in use' docker volume rm testvol
    stop_mounter podman
    podman volume rm testvol >/dev/null
    same 'removed on the second node' '' "$(podman volume ls -q)"
    eventually '' docker volume ls -q
    kill "$second_orlop"
    wait "$second_orlop" || fail 'the second process of orlop has failed'
    configure_podman /run/docker/plugins/orlop.sock
}
