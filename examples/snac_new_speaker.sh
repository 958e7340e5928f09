#!/bin/sh
# A tiny SNAC learns four speakers of the Free Spoken Digit Dataset, then moves to the fifth, on both backends from the
# same start: its decoder alone, and all of it. sh examples/snac_new_speaker.sh RECORDINGS WORK
set -e
if [ ! -d "${1-}" ] || [ -z "${2-}" ]; then
  echo "usage: sh examples/snac_new_speaker.sh RECORDINGS WORK" >&2
  exit 2
fi
recordings=$1 work=$2
python examples/fsdd_folders.py "$recordings" "$work/dataset"
python -m snac_port.finetune --config configs/tiny_from_scratch.json --backend torch \
  --train-data "$work/dataset/four/train" --val-data "$work/dataset/four/val" --output-dir "$work/four"
for backend in mlx torch; do
  python -m snac_port.finetune --config configs/tiny.json --backend $backend \
    --pretrained-model "$work/four/best_model.pt" \
    --train-data "$work/dataset/fifth/train" --val-data "$work/dataset/fifth/val" --output-dir "$work/fifth_$backend"
  python -m snac_port.finetune --config configs/tiny.json --backend $backend --no-freeze-encoder --no-freeze-vq \
    --pretrained-model "$work/four/best_model.pt" \
    --train-data "$work/dataset/fifth/train" --val-data "$work/dataset/fifth/val" --output-dir "$work/whole_$backend"
done
python -m snac_port.stats --checkpoint "$work/four/best_model.pt" --input "$work/dataset/fifth/val" --output "$work/stats.json"
# What can be heard of it: the new speaker before and after, through each codec.
for codec in four fifth_mlx fifth_torch whole_mlx whole_torch; do
  echo "$codec: $(python -m snac_port.inference --checkpoint "$work/$codec/best_model.pt" \
    --input "$work/dataset/fifth/val" --output "$work/heard/$codec" | tail -n 1)"
done
