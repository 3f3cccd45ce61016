# Start the rushes container on a storage folder. Source it, from bash or zsh:
#
#   source launch_container.sh PATH_TO_STORAGE [MOUNT=PATH ...]
#
# PATH_TO_STORAGE is seen inside as /data_mount, this checkout as /rushes (edits on either side
# count at once), and each PATH as /MOUNT.
#
#   CUDA_VISIBLE_DEVICES   which GPUs to hand over: unset means all, empty or -1 means none
#   RUSHES_IMAGE           an image to pull; without it, or when it cannot be had, one is built
#
# Without an NVIDIA driver it starts the CPU image.
#
# All of it runs in one subshell: no variable, function or option reaches the shell that sources it.
# shellcheck shell=bash
(
    say() { printf 'launch_container: %s\n' "$*" >&2; }

    # $1 bind-mounted at $2. Docker reads the option as CSV, so commas and quotes need quoting.
    mount_option() {
        local source="source=$1" target="target=$2"
        case $source in
            *[,\"]*) source="\"$(printf '%s' "$source" | sed 's/"/""/g')\"" ;;
        esac
        printf '%s' "type=bind,$source,$target"
    }

    # The absolute path of the existing file or folder $1.
    absolute() {
        if [ -d "$1" ]; then
            (CDPATH='' cd -- "$1" && pwd)
        else
            printf '%s/%s' "$(CDPATH='' cd -- "$(dirname -- "$1")" && pwd)" "$(basename -- "$1")"
        fi
    }

    # Fills the array `arguments` with the mounts that the arguments ask for.
    collect_mounts() {
        local storage=$1 checkout=$2 argument target
        shift 2
        arguments+=(--mount "$(mount_option "$storage" /data_mount)")
        arguments+=(--mount "$(mount_option "$checkout" /rushes)")
        for argument in "$@"; do
            case $argument in
                ?*=?*) ;;
                *)
                    say "'$argument': expected MOUNT=PATH"
                    return 1
                    ;;
            esac
            target=${argument%%=*}
            target=/${target#/}
            case $target in
                / | /data_mount | /rushes)
                    say "'$argument': $target is taken; choose another MOUNT"
                    return 1
                    ;;
            esac
            if [ ! -e "${argument#*=}" ]; then
                say "'${argument#*=}': no such file or folder (mount $target)"
                return 1
            fi
            arguments+=(--mount "$(mount_option "$(absolute "${argument#*=}")" "$target")")
        done
    }

    # Sets `device`, and adds the GPUs to `arguments` where there are any to hand over.
    choose_device() {
        device=cpu
        if [ "${CUDA_VISIBLE_DEVICES-all}" = "" ] || [ "${CUDA_VISIBLE_DEVICES-all}" = -1 ]; then
            say "CUDA_VISIBLE_DEVICES hides every GPU; starting on the CPU"
        elif ! nvidia-smi -L >/dev/null 2>&1; then
            say "no NVIDIA driver answers; starting on the CPU"
        else
            device=cuda
            if [ -n "${CUDA_VISIBLE_DEVICES-}" ]; then
                # The container sees only these, numbered from 0. Docker reads CSV here too.
                arguments+=(--gpus "\"device=$CUDA_VISIBLE_DEVICES\"")
            else
                arguments+=(--gpus all)
            fi
        fi
    }

    # Sets `image`: the one asked for, pulled or already here, else one built from the checkout.
    find_image() {
        local checkout=$1 file=$1/docker/Dockerfile
        if [ -n "${RUSHES_IMAGE-}" ]; then
            image=$RUSHES_IMAGE
            docker pull "$image" && return 0
            if docker image inspect "$image" >/dev/null 2>&1; then
                say "cannot pull $image; using the copy on this machine"
                return 0
            fi
            say "cannot pull $image; building one instead"
        fi
        if [ "$device" = cpu ]; then file=$1/docker/Dockerfile.cpu; fi
        image=rushes:$device
        docker build --tag "$image" --file "$file" "$checkout" || {
            say "building $image from $file failed"
            return 1
        }
    }

    launch() {
        local script=$1 storage=${2-} checkout device image arguments
        if [ "$#" -lt 2 ]; then
            say "usage: source launch_container.sh PATH_TO_STORAGE [MOUNT=PATH ...]"
            return 2
        fi
        shift 2
        if [ ! -d "$storage" ]; then
            say "'$storage': no such folder; scripts/download_data.sh makes the storage folder"
            return 1
        fi
        if ! command -v docker >/dev/null 2>&1; then
            say "no docker on PATH; install Docker Engine, or run without a container: make setup"
            return 1
        fi
        checkout=$(absolute "$(dirname -- "$script")") || return 1
        arguments=(--rm --ipc=host --workdir /rushes --env PATH_TO_STORAGE=/data_mount)
        if [ -t 0 ] && [ -t 1 ]; then arguments+=(--interactive --tty); fi
        collect_mounts "$(absolute "$storage")" "$checkout" "$@" || return 1
        choose_device
        find_image "$checkout" || return 1
        docker run "${arguments[@]}" "$image" bash
    }

    launch "${BASH_SOURCE[0]:-$0}" "$@"
)
