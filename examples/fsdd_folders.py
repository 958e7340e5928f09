"""Sort the Free Spoken Digit Dataset for a codec: four speakers to learn from, the fifth to move to.

    git clone https://github.com/Jakobovski/free-spoken-digit-dataset
    python examples/fsdd_folders.py free-spoken-digit-dataset/recordings dataset --fifth george

Makes links in dataset/{four,fifth}/{train,val}/SPEAKER; the first five takes of each digit validate.
"""

import argparse
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--fifth", default="george")
    arguments = parser.parse_args()
    found = sorted(arguments.recordings.glob("*_*_*.wav"))
    if not found:
        parser.error(f"{arguments.recordings}: holds no DIGIT_SPEAKER_TAKE.wav")
    for path in found:
        _, speaker, take = path.stem.split("_")
        group = "fifth" if speaker == arguments.fifth else "four"
        link = arguments.output / group / ("val" if int(take) < 5 else "train") / speaker / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(path.resolve())
    print(f"{len(found)} recordings in {arguments.output}")


if __name__ == "__main__":
    main()
